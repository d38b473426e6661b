# The table of contents, which people run from any folder. The profile profiles/default is found
# beside it.
from snakemake.utils import min_version

min_version("9.27")


report: "workflow/report/workflow.rst"


# For --sdm apptainer: the image of envs/Dockerfile (docs/environments.md).
container: "latteclip.sif"


include: "workflow/rules/common.smk"


rule all:
    input:
        TABLES,
        # By themselves too: the table alone would hide that a deleted result is missing.
        jobs.all_runs(run),
        [jobs.selection(each) for each in run.datasets],
        [f"{each.results}/report{SUFFIX}.html" for each in run.datasets],
    localrule: True


rule labels:
    input:
        [f"{each.results}/fused_labels.parquet" for each in run.datasets],
        [f"{each.results}/unknown.parquet" for each in run.datasets],
        [f"{each.results}/image_prototypes/seed0/model" for each in run.datasets],
    localrule: True


include: "workflow/rules/models.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pseudo_labels.smk"
include: "workflow/rules/captions.smk"
include: "workflow/rules/discover.smk"
include: "workflow/rules/labels.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/reports.smk"


onstart:
    handlers.start()


onsuccess:
    handlers.finish()


onerror:
    handlers.report_failures()
