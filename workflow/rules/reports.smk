# The pages that people read: one per dataset, and one over all of them.


rule report_dataset:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        image_captions=of(lambda dataset: jobs.captions(dataset, "image")),
        group_captions=of(lambda dataset: jobs.captions(dataset, "group")),
        metrics=each("metrics", jobs.page_runs),
        train_predictions=each("train_predictions", jobs.page_runs),
        selection=of(jobs.selection),
        audit=of(jobs.audit),
        fused_labels=of(jobs.fused_file, name="fused_labels.parquet"),
        fusion_report=of(jobs.fused_file, name="fused_labels.json"),
        labeller_labels=of(jobs.fused_file, name="labeller_labels.parquet"),
        discovery=of(jobs.discovery),
        unknown="results/{dataset}/unknown.parquet",
        duplicates="results/{dataset}/duplicates.parquet",
        corrupt="results/{dataset}/corrupt.csv",
    output:
        report(
            f"results/{{dataset}}/report{SUFFIX}.html",
            caption="../report/dataset.rst",
            category="Datasets",
            labels={"what": "page of a dataset", "dataset": "{dataset}"},
        ),
    log:
        "results/{dataset}/logs/report_dataset.log",
    resources:
        mem_mb=memory(4_000, per_million=4_000),
        runtime=minutes(10, images_per_second=1_000),
    params:
        code=code_of("latteclip.report.report_dataset"),
        files=file_names(
            "images",
            "pseudo_labels",
            "image_captions",
            "group_captions",
            "selection",
            "audit",
            "fused_labels",
            "fusion_report",
            "discovery",
            "labeller_labels",
            "unknown",
            "duplicates",
            "corrupt",
        ),
        runs=as_json(jobs.page_runs),
        settings=as_json(jobs.report_dataset),
    shell:
        "latteclip report-dataset --files {params.files:q} --runs {params.runs:q}"
        " --settings {params.settings:q} --output {output} --log {log}"


rule index_results:
    input:
        metrics=rules.summarize.input.metrics,
        selections=rules.summarize.input.selections,
        audits=rules.summarize.input.audits,
    output:
        report(
            f"results/{jobs.overview(run)}",
            caption="../report/index.rst",
            category="Accuracy",
            labels={"what": "page over all datasets"},
        ),
    log:
        "results/logs/index_results.log",
    localrule: True
    params:
        code=code_of("latteclip.report.index_results"),
        settings=json.dumps(jobs.index_results(run), ensure_ascii=False),
        others=jobs.others(run),
    shell:
        "latteclip index-results {input.metrics} --selections {input.selections} --audits {input.audits}"
        " {params.others} --settings {params.settings:q} --output {output} --log {log}"
