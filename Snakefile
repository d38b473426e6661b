from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


for dataset_file in sorted(Path("config/datasets").glob("*.yaml")):

    configfile: str(dataset_file)


include: "workflow/rules/common.smk"
include: "workflow/rules/common_resources.smk"


container: settings.config["container"]  # for --sdm apptainer; null: none


include: "workflow/rules/models.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pseudo_labels.smk"
include: "workflow/rules/captions.smk"
include: "workflow/rules/caption_labels.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/common_reports.smk"
include: "workflow/rules/reports.smk"


rule all:
    default_target: True
    input:
        rules.summarize.output,
        # By themselves too: the table alone would hide that a deleted result is missing.
        rules.summarize.input.metrics,
        [
            f"results/{dataset}/captions/summary.json"
            for dataset in settings.datasets
            if settings.caption_kinds(dataset)
        ],
        expand(rules.report_dataset.output, dataset=settings.datasets),
        rules.index_results.output,
    localrule: True


onstart:
    refuse_second_run()
