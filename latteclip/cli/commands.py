"""The commands for users. `latteclip.cli.stages` has the commands for the workflow's rules.

`latteclip.cli.arguments` makes their command lines from signatures and documentation. A command
imports its code when it runs, so that --help does without torch.
"""

import os
import sys
from collections.abc import Sequence
from typing import Literal

from latteclip.core.errors import UserError
from latteclip.core.terminal import for_terminal

SKIPPED = 3  # exit status: some images could not be decoded
COMMANDS = {  # the modules of their functions, in the order of the help
    **dict.fromkeys(("workflow", "datasets", "captions", "labels", "teach"), __name__),
    **dict.fromkeys(("audit", "predict", "export"), __name__),
    "status": "latteclip.cli.status",
    "doctor": "latteclip.cli.doctor",
    "completion": "latteclip.cli.main",
}


def workflow(arguments: Sequence[str], /) -> None:
    """Run the workflow in this folder, by snakemake.

    `snakemake --help` lists the arguments. The Snakefile is the package's own.

    Args:
        arguments: as snakemake takes them: -j4 --config dataset=demo
    """
    from latteclip.config import layers

    own = ["--snakefile", str(layers.SNAKEFILE), "--directory", "."]
    command = [sys.executable, "-m", "snakemake", *own, *arguments]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # signals are to reach Snakemake itself


def datasets(check: Sequence[str] = (), /) -> None:
    """List the datasets, or verify what is on disk.

    Args:
        check: check, and the keys of datasets to verify (default: all that are on disk)
    """
    from latteclip.data import download_dataset as listing

    print(for_terminal(listing.command(check)))


def captions(
    action: Literal["show"], file: str, /, n: int = 5, pictures: str | None = None
) -> None:
    """Show a few captions with class and prompt.

    Args:
        action: show
        file: a table of captions: results/<dataset>/captions/*.parquet
        n: how many (default: 5)
        pictures: folder in which their pictures are drawn
    """
    from latteclip.captions import show

    print(for_terminal(show.show(file, n, pictures)))


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
) -> None:
    """Show where labels come from, or export them.

    Without --image, show prints images whose label changed, where signals disagree, and where all
    agree.

    Args:
        action: show or export
        results: a dataset's folder: results/<dataset>
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

        print(for_terminal(show.show(results, n, image)))
        return
    from latteclip.deploy import export_labels

    if not format or not output:
        raise UserError("latteclip labels export needs --format FORMAT and --output PATH.")
    report = export_labels.export_labels(
        results,
        format,
        output,
        copy=copy,
        leave_out=leave_out,
        max_error=max_error,
        false_discovery=false_discovery,
    )
    print(for_terminal(report))


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
        results: a dataset's folder: results/<dataset>
        budget: how many images (default: 100)
        offline: write a page that needs no server, to answer elsewhere
        answers: import the answers that it exports, or labels of some images: CSV, Parquet or JSON
            Lines with the columns image and class, or an export of Label Studio
        port: of the page (default: any that is free)
        no_browser: print the address alone
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
        results: a dataset's folder: results/<dataset>
        split: whose images (default: test, where there are any); of the training images beside a
            test split, those that no model learned from
        budget: how many images (default: 100)
        offline: write a page that needs no server, to answer elsewhere
        answers: import the answers that it exports
        score: print the estimate from the answers so far
        port: of the page (default: any that is free)
        no_browser: print the address alone
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


def predict(
    model: str,
    paths: Sequence[str],
    /,
    *,
    output: str | None = None,
    topk: int = 1,
    batch_size: int = 256,
    precision: Literal["bf16", "fp16", "float32"] = "bf16",
    device: str,
    threads: int,
    unknown: bool = False,
    abstain: float | None = None,
) -> int:
    """Classify images with a tuned model.

    Images that cannot be decoded are reported on stderr and left out; the exit status is then 3.
    score is that of the model's classifier, such as the cosine of image and prototype; probability
    is the softmax of the scaled scores over all classes.

    Args:
        model: results/<dataset>, for the chosen model, or results/<dataset>/<method>/seed<n>/model
        paths: image, folder (with all below it), glob, or - for a list on stdin
        output: .csv, .jsonl or .parquet file (default: CSV on stdout)
        topk: classes per image (default: 1)
        batch_size: images encoded at once (default: 256)
        precision: of a GPU's arithmetic (default: bf16)
        unknown: mark images that belong to none of the classes (unknown_score, is_unknown)
        abstain: mark the least certain predictions (abstained), so that with 95 % probability at
            most this share of all is wrong and not marked, by the answers of latteclip teach
    """
    from latteclip.deploy import predict as prediction

    skipped = prediction.predict(
        model,
        paths,
        output,
        topk=topk,
        batch_size=batch_size,
        precision=precision,
        device=device,
        threads=threads,
        unknown=unknown,
        abstain=abstain,
    )
    return SKIPPED if skipped else 0


def export(
    model: str,
    destination: str,
    /,
    format: Literal["open_clip", "transformers", "onnx"],
    licence: str | None = None,
) -> None:
    """Write a tuned model as open_clip, transformers or ONNX load it.

    Args:
        model: results/<dataset>, for the chosen model, or results/<dataset>/<method>/seed<n>/model
        destination: new or empty folder
        format: the library that loads it
        licence: of the weights, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0, ...
    """
    from latteclip.deploy import export as exporting

    print(f"To upload it: {exporting.export(model, destination, format, licence)}")
