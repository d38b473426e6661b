# The pages that people read: one per dataset, and one over all of them.


rule report_dataset:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        image_captions=captions_if_read("image"),
        group_captions=captions_if_read("group"),
        caption_summary=caption_summary_if_read,
        metrics=of_runs("metrics"),
        histories=of_runs("history"),
        predictions=of_runs("predictions"),
        galleries=of_runs("gallery"),
        templates=templates(),
        code=sources("latteclip.report.report_dataset"),
    output:
        report(
            f"results/{{dataset}}/report{PAGES}.html",
            caption="../report/dataset.rst",
            category="Datasets",
            labels={"dataset": "{dataset}"},
        ),
    log:
        "results/{dataset}/logs/report_dataset.log",
    conda:
        "../../envs/latteclip.yaml"
    resources:
        mem_mb=memory("report_dataset"),
        runtime=minutes("report_dataset"),
    params:
        captions=options("image_captions", "group_captions", "caption_summary"),
        runs=lambda w: as_json(report_runs(w.dataset)),
        settings=report_settings,
    shell:
        "latteclip report-dataset --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " {params.captions} --runs {params.runs:q} --settings {params.settings:q}"
        " --output {output} --log {log}"


rule index_results:
    input:
        metrics=rules.summarize.input.metrics,
        templates=templates(),
        code=sources("latteclip.report.index_results"),
    output:
        report(
            f"results/index{PAGES}.html",
            caption="../report/index.rst",
            category="Accuracy",
        ),
    log:
        "results/logs/index_results.log",
    localrule: True
    conda:
        "../../envs/latteclip.yaml"
    params:
        settings=index_settings(),
    shell:
        "latteclip index-results {input.metrics} --settings {params.settings:q} --output {output}"
        " --log {log}"
