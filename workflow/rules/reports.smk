# The pages that people read: one per dataset, and one over all of them.


rule report_dataset:
    input:
        images="results/{dataset}/images.parquet",
        pseudo_labels="results/{dataset}/pseudo_labels.parquet",
        image_captions=given(stage_params.captions, "dataset", kind="image"),
        group_captions=given(stage_params.captions, "dataset", kind="group"),
        metrics=given_each("metrics", stage_params.page_runs, "dataset"),
        train_predictions=given_each(
            "train_predictions", stage_params.page_runs, "dataset"
        ),
        selection=given(stage_params.selection_if_any, "dataset"),
        audit=given(stage_params.audit_if_any, "dataset"),
        fused_labels=given_if(
            "results/{dataset}/fused_labels.parquet",
            stage_params.shows_fused_labels,
            "dataset",
        ),
        fusion_report=given_if(
            "results/{dataset}/fused_labels.json",
            stage_params.shows_fused_labels,
            "dataset",
        ),
        discovery=given(stage_params.discovery_if_any, "dataset"),
        voter_labels=given_if(
            "results/{dataset}/voter_labels.parquet",
            stage_params.shows_fused_labels,
            "dataset",
        ),
        unknown="results/{dataset}/unknown.parquet",
        duplicates="results/{dataset}/duplicates.parquet",
        corrupt="results/{dataset}/corrupt.csv",
        templates=unstored(stage_code.templates()),
        code=sources("latteclip.report.report_dataset"),
    output:
        report(
            f"results/{{dataset}}/report{SUFFIX}.html",
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
            "voter_labels",
            "unknown",
            "duplicates",
            "corrupt",
        ),
        runs=as_found(given_json(stage_params.page_runs, "dataset")),
        settings=as_found(given(stage_params.report_dataset, "dataset")),
    shell:
        "latteclip report-dataset --files {params.files:q} --runs {params.runs:q}"
        " --settings {params.settings:q} --output {output} --log {log}"


rule index_results:
    input:
        metrics=rules.summarize.input.metrics,
        selections=rules.summarize.input.selections,
        audits=rules.summarize.input.audits,
        templates=unstored(stage_code.templates()),
        code=sources("latteclip.report.index_results"),
    output:
        report(
            f"results/{stage_params.overview(configuration)}",
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
        settings=given_json(stage_params.index_results),
        others=stage_params.others(configuration),
    shell:
        "latteclip index-results {input.metrics} --selections {input.selections} --audits {input.audits}"
        " {params.others} --settings {params.settings:q} --output {output} --log {log}"
