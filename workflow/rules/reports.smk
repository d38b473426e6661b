# The pages that people read: one per dataset, and one over all of them.

# Pages of a table of its own stand beside the main ones.
PAGES = configuration.suffix


rule report_dataset:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        image_captions=given(rule_inputs.captions_if_in_use, kind="image"),
        group_captions=given(rule_inputs.captions_if_in_use, kind="group"),
        caption_summary=given(rule_inputs.caption_summary_if_in_use),
        metrics=given(page_settings.files_of_runs, kind="metrics"),
        histories=given(page_settings.files_of_runs, kind="history"),
        predictions=given(page_settings.files_of_runs, kind="predictions"),
        galleries=given(page_settings.files_of_runs, kind="gallery"),
        selection=given(rule_inputs.selection_if_any),
        calibrated=given(rule_inputs.calibrated_if_run),
        audit=given(rule_inputs.audit_if_any),
        unknown="results/{dataset}/unknown.parquet",
        duplicates="results/{dataset}/duplicates.parquet",
        corrupt="results/{dataset}/corrupt.csv",
        templates=unstored(code.templates()),
        code=sources("latteclip.report.report_dataset"),
    output:
        report(
            f"results/{{dataset}}/report{PAGES}.html",
            caption="../report/dataset.rst",
            category="Datasets",
            labels={"what": "page of a dataset", "dataset": "{dataset}"},
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
        choice=options("selection", "calibrated", "audit"),
        runs=as_found(given_json(page_settings.runs)),
        settings=as_found(given(page_settings.report_dataset)),
    shell:
        "latteclip report-dataset --images {input.images} --pseudo-labels {input.pseudo_labels}"
        " {params.captions} {params.choice} --duplicates {input.duplicates}"
        " --corrupt {input.corrupt} --unknown {input.unknown} --runs {params.runs:q} --settings {params.settings:q}"
        " --output {output} --log {log}"


rule index_results:
    input:
        metrics=rules.summarize.input.metrics,
        selections=rules.summarize.input.selections,
        audits=rules.summarize.input.audits,
        templates=unstored(code.templates()),
        code=sources("latteclip.report.index_results"),
    output:
        report(
            f"results/{page_settings.overview(configuration)}",
            caption="../report/index.rst",
            category="Accuracy",
            labels={"what": "page over all datasets"},
        ),
    log:
        "results/logs/index_results.log",
    localrule: True
    conda:
        "../../envs/latteclip.yaml"
    params:
        settings=given_json(page_settings.index_results),
        others=page_settings.others(configuration),
    shell:
        "latteclip index-results {input.metrics} --selections {input.selections} --audits {input.audits}"
        " {params.others} --settings {params.settings:q} --output {output} --log {log}"
