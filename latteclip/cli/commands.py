"""The commands for users, and the tables of all commands.

`latteclip.cli.arguments` makes their command lines from signatures and documentation. A command
imports its code when it runs, so that --help does without torch. It returns its output or its exit
status.
"""

import os
import sys
from collections.abc import Sequence
from typing import Literal

from latteclip.core.errors import UserError

COMMANDS = {  # of users: the modules of their functions, in the order of the help
    **dict.fromkeys(("workflow", "datasets", "captions", "labels", "teach", "audit"), __name__),
    "predict": "latteclip.deploy.predict",
    "export": "latteclip.deploy.export",
    "status": "latteclip.cli.status",
    "doctor": "latteclip.cli.doctor",
    "completion": "latteclip.cli.main",
}
# Of the rules of the workflow, in the order of the stages.
STAGES = {  # by command: the module of its function
    "generate_textures": "latteclip.demo.generate_textures",
    "download_dataset": "latteclip.data.download_dataset",
    "download_clip": "latteclip.data.download_models",
    "download_captioner": "latteclip.data.download_models",
    "download_eye": "latteclip.data.download_models",
    "index_images": "latteclip.data.index_images",
    "find_duplicates": "latteclip.data.find_duplicates",
    "encode_images": "latteclip.labels.encode_images",
    "pseudo_label_images": "latteclip.labels.pseudo_label_images",
    "caption_images": "latteclip.captions.caption",
    "caption_groups": "latteclip.captions.caption",
    "score_classes": "latteclip.captions.score_classes",
    "gather_captions": "latteclip.captions.caption",
    "summarize_captions": "latteclip.captions.summarize_captions",
    "calibrate_zero_shot": "latteclip.labels.calibrate_zero_shot",
    "fuse_labels": "latteclip.labels.fuse_labels",
    "score_unknown": "latteclip.labels.score_unknown",
    "assemble_model": "latteclip.deploy.assemble_model",
    "find_learning_rate": "latteclip.train.find_learning_rate",
    "finetune": "latteclip.train.finetune",
    "average_weights": "latteclip.deploy.average_weights",
    "evaluate": "latteclip.evaluate.evaluate",
    "evaluate_classifier": "latteclip.evaluate.evaluate_classifier",
    "propagate_labels": "latteclip.evaluate.propagate_labels",
    "score_audit": "latteclip.audit.score_audit",
    "select_model": "latteclip.evaluate.select_model",
    "summarize": "latteclip.evaluate.summarize",
    "report_dataset": "latteclip.report.report_dataset",
    "index_results": "latteclip.report.index_results",
}


def workflow(arguments: Sequence[str], /) -> None:
    """Run the workflow in this folder, by snakemake.

    `snakemake --help` lists the arguments. The Snakefile is the package's own.

    Args:
        arguments: as snakemake takes them: -j4 --config dataset=demo
    """
    from latteclip.config import layers

    sys.stdout.flush()
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(layers.SNAKEFILE)]
    os.execv(sys.executable, [*command, "--directory", ".", *arguments])  # it gets all signals


def datasets(check: Sequence[str] = (), /) -> str:
    """List the datasets, or verify what is on disk.

    Args:
        check: check, and the keys of datasets to verify (default: all that are on disk)
    """
    from latteclip.data import download_dataset

    return download_dataset.command(check)


def captions(action: Literal["show"], file: str, /, n: int = 5, pictures: str | None = None) -> str:
    """Show a few captions with class and prompt.

    Args:
        action: show
        file: a table of captions: results/<dataset>/captions/*.parquet
        n: how many (default: 5)
        pictures: folder in which their pictures are drawn
    """
    from latteclip.captions import show

    return show.show(file, n, pictures)


def labels(
    action: Literal["show", "export"],
    results: str,
    /,
    n: int = 6,
    image: Sequence[str] = (),
    format: Literal["csv", "parquet", "label-studio", "imagefolder"] | None = None,
    output: str | None = None,
    copy: bool = False,
    max_error: float | None = None,
    false_discovery: float | None = None,
    leave_out: Sequence[Literal["unknown", "duplicates"]] = (),
) -> str:
    """Show where labels come from, or export them.

    Without --image, show prints images whose label changed, where signals disagree, and where all
    agree.

    Args:
        action: show or export
        n: show: how many images (default: 6), 0 for the summary alone
        image: show: these images instead, by their image_id in images.parquet
        format: export: the format
        output: export: a file, or a new folder for the last two formats
        copy: export, imagefolder: copies of the images, no links
        max_error: export: accept as many labels as leave at most this share of all labels wrong
            and accepted, with 95 % probability, by the answers of latteclip teach
        false_discovery: export: accept labels of which on average at most this share is wrong
        leave_out: export: without images of no class (unknown), or with one image of each set of
            duplicates (duplicates)
    """
    if action == "show":
        from latteclip.labels import show

        return show.show(results, n, image)
    from latteclip.deploy import export_labels

    if not format or not output:
        raise UserError("latteclip labels export needs --format FORMAT and --output PATH.")
    errors = {"max_error": max_error, "false_discovery": false_discovery}
    return export_labels.export_labels(
        results, format, output, copy=copy, leave_out=leave_out, **errors
    )


def teach(
    results: str,
    /,
    budget: int = 100,
    offline: str | None = None,
    answers: str | None = None,
    port: int = 0,
    no_browser: bool = False,
) -> None:
    """Ask you about the training images from which the labels learn most.

    The first half of the images are those whose labels are in doubt, and the labels learn from
    every ten answers. The other half are drawn at random and check the labels. Answers are in
    RESULTS/answers.json. Run the workflow again, and labels, recommended model and pages follow
    them.

    Args:
        answers: import the answers that it exports, or labels of some images: CSV, Parquet or JSON
            Lines with the columns image and class, or an export of Label Studio
    """
    from latteclip.audit import app
    from latteclip.audit.teach import TeachingSession

    session = TeachingSession(results, budget)
    if offline:
        app.write_offline(session, offline)
    elif answers:
        app.import_answers(session, answers)
    else:
        app.serve(session, port, browser=not no_browser)


def audit(
    results: str,
    /,
    split: Literal["test", "train"] | None = None,
    budget: int = 100,
    offline: str | None = None,
    answers: str | None = None,
    score: bool = False,
    port: int = 0,
    no_browser: bool = False,
) -> None:
    """Ask you about a few images, and report whether tuning helped.

    The page is on this machine alone, and its address is a secret. Images are drawn at random,
    more of them where an answer tells more. No model is trained on the answers. They are in
    RESULTS/audit, and the workflow scores models by them.

    Args:
        split: whose images (default: test, where there are any); of the training images beside a
            test split, those that no model learned from
        answers: import the answers that it exports
        score: print the estimate from the answers so far
    """
    from latteclip.audit import app

    session = app.AuditSession(results, split, budget)
    if offline:
        app.write_offline(session, offline)
        return
    if answers:
        app.import_answers(session, answers)
    if answers or score:
        app.print_result(session)
    else:
        app.serve(session, port, browser=not no_browser)
