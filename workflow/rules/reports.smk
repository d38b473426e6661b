# What people read: the table over all datasets, and a page of each.


# The inputs of a page beside those of the runs, by name.
PAGE_FILES = {
    "images": "results/{dataset}/images.parquet",
    "pseudo_labels": PSEUDO_LABELS,
    "image_captions": branch(
        dataset_setting("reads_image_captions"), then=IMAGE_CAPTIONS
    ),
    "selection": dataset_setting(jobs.selection),
    "audit": dataset_setting(audit_scores),
    "fused_labels": branch(dataset_setting("reads_fused_labels"), then=FUSED_LABELS),
    "fusion_report": branch(dataset_setting("reads_fused_labels"), then=FUSION_REPORT),
    "discovery": branch(
        dataset_setting(proposes_classes), then="results/{dataset}/discovery.json"
    ),
    "unknown": "results/{dataset}/unknown.parquet",
    "duplicates": "results/{dataset}/duplicates.parquet",
    "corrupt": "results/{dataset}/corrupt.csv",
    "encoding": "results/{dataset}/encoding.json",
}


rule report_dataset:
    input:
        **PAGE_FILES,
        asked=dataset_setting(answer_tables),
        metrics=collect("{run}/metrics.json", run=dataset_setting("run_folders")),
        train_predictions=collect(
            "{run}/train_predictions.parquet", run=dataset_setting("run_folders")
        ),
    output:
        report(
            f"results/{{dataset}}/report{SUFFIX}.html",
            caption="../report/dataset.rst",
            category="Datasets",
        ),
    log:
        "results/{dataset}/logs/report_dataset.log",
    resources:
        **TABLE_RESOURCES,
    params:
        code=code_of("latteclip.report.report_dataset"),
        files=inputs_as_json(*PAGE_FILES),
        asked=as_json(dataset_setting(jobs.named_answer_tables)),
        runs=as_json(dataset_setting(jobs.runs)),
        settings=as_json(dataset_setting(jobs.report_dataset)),
    shell:
        "latteclip report-dataset --files {params.files:q} --asked {params.asked:q} --runs {params.runs:q}"
        " --settings {params.settings:q} --output {output} --log {log}"


rule summarize:
    input:
        metrics=jobs.all_runs(run),
        selections=[jobs.selection(dataset) for dataset in run.datasets],
        audits=all_audit_scores,
        asked=jobs.answer_tables(run),
    output:
        csv=report(
            f"{TABLE}.csv",
            caption="../report/summary.rst",
            category="Accuracy",
        ),
        markdown=f"{TABLE}.md",
    log:
        "results/logs/summarize.log",
    localrule: True
    params:
        code=code_of("latteclip.report.summarize"),
        baseline=run.keys.table.baseline,
        published=json.dumps(jobs.published(run)),
        asked=as_json(all_answer_tables),
    shell:
        "latteclip summarize {input.metrics} --baseline {params.baseline:q}"
        " --published {params.published:q} --asked {params.asked:q}"
        " --selections {input.selections} --audits {input.audits} --csv {output.csv}"
        " --markdown {output.markdown} --log {log}"
