"""The commands for users, and the tables of all commands.

Code is imported when it runs, so that --help needs no torch. It returns its output or exit status.
"""

import os
import sys
from collections.abc import Sequence
from typing import Literal

COMMANDS = {  # users' commands: the modules of their functions, in the order of the help
    "workflow": __name__,
    "datasets": "latteclip.data.download_dataset",
    "labels": __name__,
    "teach": "latteclip.audit.teach",
    "classes": "latteclip.discover.classes",
    "audit": "latteclip.audit.audit",
    "rename_class": "latteclip.audit.rename_class",
    "predict": "latteclip.deploy.predict",
    "export": "latteclip.deploy.export",
    "status": "latteclip.cli.status",
    "doctor": "latteclip.cli.doctor",
}
# The commands of the workflow's rules, in the order of the stages.
STAGES = {  # by command: the module of its function
    "download_dataset": "latteclip.data.download_dataset",
    "download_model": "latteclip.clip.download_models",
    "index_images": "latteclip.data.index_images",
    "find_duplicates": "latteclip.data.find_duplicates",
    "encode_images": "latteclip.labels.encode_images",
    "encode_examples": "latteclip.labels.encode_images",
    "pseudo_label_images": "latteclip.labels.pseudo_label_images",
    "caption_images": "latteclip.captions.caption",
    "propose_classes": "latteclip.discover.discover_classes",
    "discover_classes": "latteclip.discover.discover_classes",
    "caption_groups": "latteclip.captions.caption",
    "score_classes": "latteclip.captions.score_classes",
    "gather_captions": "latteclip.captions.caption",
    "write_votes": "latteclip.labels.write_votes",
    "adapt_zero_shot": "latteclip.labels.fuse_labels",
    "fuse_labels": "latteclip.labels.fuse_labels",
    "score_unknown": "latteclip.labels.score_unknown",
    "find_learning_rate": "latteclip.train.find_learning_rate",
    "finetune": "latteclip.train.finetune",
    "average_weights": "latteclip.train.average_weights",
    "evaluate": "latteclip.evaluate.evaluate",
    "evaluate_classifier": "latteclip.evaluate.evaluate",
    "score_audit": "latteclip.audit.score",
    "select_model": "latteclip.evaluate.select_model",
    "summarize": "latteclip.report.summarize",
    "report_dataset": "latteclip.report.report_dataset",
}


def workflow(arguments: Sequence[str], /) -> None:
    """Run the workflow in this folder, by snakemake.

    `snakemake --help` lists the arguments. The Snakefile is the package's own.

    Args:
        arguments: as snakemake takes them: --cores all --config dataset=demo
    """
    from latteclip.config import layers

    sys.stdout.flush()
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(layers.SNAKEFILE)]
    # It gets all signals.
    os.execv(sys.executable, [*command, "--directory", ".", *arguments])


def labels(
    action: Literal["export"],
    results: str,
    /,
    format: Literal["csv", "parquet", "label-studio", "imagefolder"],
    output: str,
    max_error: float | None = None,
    leave_out: Sequence[Literal["unknown", "duplicates"]] = (),
) -> str:
    """Export the labels of a dataset.

    Args:
        action: export
        format: the format
        output: a file, or a new folder for the last two formats
        max_error: accept as many labels as possible so that, with 95 % probability, at most this
            share of all labels is wrong and accepted; needs answers of latteclip teach
        leave_out: leave out images of no class (unknown), or all but one image of each set of
            duplicates (duplicates)
    """
    from latteclip.deploy import export_labels

    return export_labels.export_labels(
        results,
        format,
        output,
        leave_out=leave_out,
        max_error=max_error,
    )
