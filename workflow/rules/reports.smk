# What people read: the table over all datasets, and a page of each.


# The inputs of a page beside those of the runs, by name.
PAGE_FILES = {
    "images": "results/{dataset}/images.parquet",
    "pseudo_labels": PSEUDO_LABELS,
    "image_captions": branch(
        of(lambda each: "image" in each.caption_kinds), then=IMAGE_CAPTIONS
    ),
    "selection": of(jobs.selection),
    "audit": of(audit),
    "fused_labels": branch(of(READS_FUSED), then=FUSED_LABELS),
    "fusion_report": branch(of(READS_FUSED), then=FUSION_REPORT),
    "discovery": branch(of(proposes_classes), then="results/{dataset}/discovery.json"),
    "unknown": "results/{dataset}/unknown.parquet",
    "duplicates": "results/{dataset}/duplicates.parquet",
    "corrupt": "results/{dataset}/corrupt.csv",
    "encoding": "results/{dataset}/encoding.json",
}


rule report_dataset:
    input:
        **PAGE_FILES,
        asked=each("table", jobs.answer_tables),
        metrics=each("metrics", jobs.runs),
        train_predictions=each("train_predictions", jobs.runs),
    output:
        report(
            f"results/{{dataset}}/report{SUFFIX}.html",
            caption="../report/dataset.rst",
            category="Datasets",
        ),
    log:
        "results/{dataset}/logs/report_dataset.log",
    resources:
        **LIGHT,
    params:
        code=code_of("latteclip.report.report_dataset"),
        files=file_names(*PAGE_FILES),
        asked=as_json(jobs.answer_tables),
        runs=as_json(jobs.runs),
        settings=as_json(jobs.report_dataset),
    shell:
        "latteclip report-dataset --files {params.files:q} --asked {params.asked:q} --runs {params.runs:q}"
        " --settings {params.settings:q} --output {output} --log {log}"


rule summarize:
    input:
        metrics=jobs.all_runs(run),
        selections=[jobs.selection(dataset) for dataset in run.datasets],
        audits=lambda wildcards: [file for each in run.datasets for file in audit(each)],
        asked=jobs.asked(run),
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
        asked=as_json(lambda run: jobs.answer_tables(*run.datasets), "run"),
    shell:
        "latteclip summarize {input.metrics} --baseline {params.baseline:q}"
        " --selections {input.selections} --audits {input.audits} --asked {params.asked:q} --csv {output.csv}"
        " --markdown {output.markdown} --log {log}"
