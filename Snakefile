# The table of contents, which people run from any folder (docs/cluster.md). The profile
# profiles/default is found beside it.
from snakemake.utils import min_version

min_version("9.27")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


container: configuration.config["container"]  # for --sdm apptainer; null: none


include: "workflow/rules/models.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pseudo_labels.smk"
include: "workflow/rules/captions.smk"
include: "workflow/rules/voters.smk"
include: "workflow/rules/labels.smk"
include: "workflow/rules/discover.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/reports.smk"


rule all:
    default_target: True
    input:
        rules.summarize.output,
        # By themselves too: the table alone would hide that a deleted result is missing.
        rules.summarize.input.metrics,
        rules.summarize.input.selections,
        [
            f"results/{each}/{method}/seed0/model"
            for each in configuration.datasets
            for method in configuration.methods_of(each)
            if configuration.objective(method).learns_classifier
        ],
        [
            f"results/{each}/captions/summary.json"
            for each in configuration.datasets
            if configuration.caption_kinds(each)
        ],
        # No expand() over outputs of rules: it refuses those that a storage keeps.
        [f"results/{each}/unknown.parquet" for each in configuration.datasets],
        [f"results/{each}/report{SUFFIX}.html" for each in configuration.datasets],
        rules.index_results.output,
    localrule: True


rule labels:
    input:
        [
            f"results/{each}/{name}"
            for each in configuration.datasets
            for name in (
                "fused_labels.parquet",
                "unknown.parquet",
                "image_prototypes/seed0/model",
            )
        ],
    localrule: True


onstart:
    functions.start_run()


onsuccess:
    functions.end_run()


onerror:
    functions.report_failures()
