"""The commands for users. `latteclip.cli.stages` has those for the workflow's rules.

A function `add_<name>` defines the arguments of a command. A command imports its code when it runs,
so that --help does without torch.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from latteclip.core.errors import UserError
from latteclip.core.terminal import for_terminal

MAX_COUNT = 2**20


SKIPPED = 3  # exit status: some images could not be decoded
NOT_READY = 1  # exit status of doctor: something needs repair
SHELLS = ("bash", "zsh", "fish", "tcsh")
FORMATS = ("open_clip", "transformers", "onnx")
LEFT_OUT = ("unknown", "duplicates")  # kinds of images, of an export of labels
LABEL_FORMATS = ("csv", "parquet", "label-studio", "imagefolder")


def count(least: int = 1, most: int = MAX_COUNT) -> Callable[[str], int]:
    """Return the argparse type of a whole number from `least` to `most`."""

    def parsed(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # also of thousands of digits
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {least} to {most}, not {text[:40]!r}"
            )
        return number

    return parsed


def threads() -> Callable[[str], int]:
    """Return the argparse type of a number of threads, at most this machine's cores."""
    return count(1, os.cpu_count() or 1)


def workflow(args: argparse.Namespace) -> None:
    """Run the workflow in this folder, by snakemake."""
    from latteclip.config import layers

    if args.arguments in (["-h"], ["--help"]):
        args.show_help()
        sys.exit(0)

    own = ["--snakefile", str(layers.SNAKEFILE), "--directory", "."]
    command = [sys.executable, "-m", "snakemake", *own, *args.arguments]
    sys.stdout.flush()
    os.execv(sys.executable, command)  # signals are to reach Snakemake itself


def add_workflow(sub: argparse.ArgumentParser) -> None:
    """Arguments of workflow."""
    sub.usage = "latteclip workflow [ARGUMENT ...]"
    sub.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="ARGUMENT",
        help="as snakemake takes it: -j4 --config dataset=demo",
    )
    sub.epilog = "`snakemake --help` lists the arguments. The Snakefile is the package's own."
    sub.set_defaults(show_help=sub.print_help)


def datasets(args: argparse.Namespace) -> None:
    """List the datasets, or verify what is on disk."""
    from latteclip.data import download_dataset as listing

    print(for_terminal(listing.command(args.check)))


def add_datasets(sub: argparse.ArgumentParser) -> None:
    """Arguments of datasets."""
    sub.usage = "latteclip datasets [check [KEY ...]]"
    sub.add_argument("check", nargs="*", help="check: verify those that are named, or all on disk")


def captions(args: argparse.Namespace) -> None:
    """Show a few captions with class and prompt."""
    from latteclip.captions import show

    print(for_terminal(show.command(args.show, args.n, args.pictures)))


def add_captions(sub: argparse.ArgumentParser) -> None:
    """Arguments of captions."""
    sub.usage = "latteclip captions show FILE [--n N] [--pictures FOLDER]"
    sub.add_argument(
        "show", nargs="*", help="show, and a table: results/<dataset>/captions/*.parquet"
    )
    sub.add_argument("--n", type=count(), default=5, help="how many (default: 5)")
    sub.add_argument("--pictures", metavar="FOLDER", help="draw their pictures in this folder")


def labels(args: argparse.Namespace) -> None:
    """Show where labels come from, or export them."""
    if args.show[:1] != ["export"]:
        from latteclip.labels import show

        print(for_terminal(show.command(args.show, args.n, args.image)))
        return
    from latteclip.deploy import export_labels

    if len(args.show) != 2 or not args.format or not args.output:
        raise UserError(
            "Say: latteclip labels export results/<dataset> --format "
            f"{{{','.join(LABEL_FORMATS)}}} --output PATH."
        )
    said = export_labels.export_labels(
        args.show[1],
        args.format,
        args.output,
        copy=args.copy,
        leave_out=args.leave_out,
        max_error=args.max_error,
        false_discovery=args.false_discovery,
    )
    print(for_terminal(said))


def _share(text: str) -> float:
    """Return a share between 0 and 1 of the command line."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1")
    return value


def add_labels(sub: argparse.ArgumentParser) -> None:
    """Arguments of labels."""
    sub.usage = (
        "latteclip labels show results/<dataset> [-n N] [--image ID ...]\n"
        "       latteclip labels export results/<dataset> --format FORMAT --output PATH [--copy]\n"
        "                        [--leave-out KIND ...]"
    )
    sub.add_argument(
        "show", nargs="*", help="show or export, and a dataset's folder: results/<dataset>"
    )
    sub.add_argument(
        "-n",
        type=count(0),
        default=6,
        metavar="N",
        help="how many images (default: 6)",
    )
    sub.add_argument(
        "--image",
        nargs="+",
        action="extend",
        default=[],
        metavar="ID",
        help="these images instead, by their image_id in images.parquet",
    )
    sub.add_argument("--format", choices=LABEL_FORMATS, help="the format of the export")
    sub.add_argument(
        "-o", "--output", metavar="PATH", help="a file, or a new folder for the last two formats"
    )
    sub.add_argument(
        "--copy", action="store_true", help="imagefolder: copies of the images, no links"
    )
    promise = sub.add_mutually_exclusive_group()
    promise.add_argument(
        "--max-error",
        type=_share,
        metavar="SHARE",
        help="of an export: mark as accepted as many labels as leave at most this share of all "
        "labels wrong and accepted, with 95 %% probability, by the answers of latteclip teach",
    )
    promise.add_argument(
        "--false-discovery",
        type=_share,
        metavar="SHARE",
        help="of an export: mark labels as accepted of which on average at most this share is "
        "wrong",
    )
    sub.add_argument(
        "--leave-out",
        nargs="+",
        choices=LEFT_OUT,
        default=[],
        metavar="KIND",
        help="export: without images of no class (unknown), or with one of each set of duplicates "
        "(duplicates)",
    )
    sub.epilog = (
        "Shown are images whose label changed, where signals disagree, and where all agree. "
        "-n 0: the summary only."
    )


def teach(args: argparse.Namespace) -> None:
    """Ask you about the training images from which the labels learn most."""
    from latteclip.audit import app
    from latteclip.audit.teach import TeachingSession

    session = TeachingSession(args.results, args.budget)
    if args.offline:
        app.write_offline(session, args.offline)
    elif args.answers:
        app.import_answers(session, args.answers)
    else:
        app.serve(session, args.port, browser=args.browser)


def _add_page(sub: argparse.ArgumentParser, answers: str) -> argparse._MutuallyExclusiveGroup:
    """Add the arguments of a page of questions, and return those that replace its server."""
    sub.add_argument("results", metavar="RESULTS", help="a dataset's folder: results/<dataset>")
    sub.add_argument(
        "--budget", type=int, default=100, metavar="N", help="how many images (default: 100)"
    )
    instead = sub.add_mutually_exclusive_group()
    instead.add_argument(
        "--offline", metavar="FILE", help="write a page that needs no server, to answer elsewhere"
    )
    instead.add_argument("--answers", metavar="FILE", help=answers)
    sub.add_argument(
        "--port", type=int, default=0, metavar="N", help="of the page (default: any that is free)"
    )
    sub.add_argument(
        "--no-browser", dest="browser", action="store_false", help="print the address alone"
    )
    return instead


def add_teach(sub: argparse.ArgumentParser) -> None:
    """Arguments of teach."""
    _add_page(
        sub,
        "take the answers that it exports, or labels of some images: CSV, Parquet or JSON Lines "
        "with the columns image and class, or an export of Label Studio",
    )
    sub.epilog = (
        "The first half of the images are those whose labels are in doubt, and the labels learn "
        "from every ten answers. The other half are drawn at random and check the labels. Answers "
        "are in RESULTS/answers.json. Run the workflow again, and labels, recommended model and "
        "pages follow them."
    )


def audit(args: argparse.Namespace) -> None:
    """Ask you about a few images, and report whether tuning helped."""
    from latteclip.audit import app

    session = app.open_audit(args.results, args.split, args.budget)
    if args.offline:
        app.write_offline(session, args.offline)
        return
    if args.answers:
        app.import_answers(session, args.answers)
    if args.answers or args.score:
        app.print_estimate(session)
    else:
        app.serve_audit(session, args.port, browser=args.browser)


def add_audit(sub: argparse.ArgumentParser) -> None:
    """Arguments of audit."""
    instead = _add_page(sub, "take the answers that it exports")
    sub.add_argument(
        "--split",
        choices=("test", "train"),
        help="whose images (default: test, where there are any); of the training images beside a "
        "test split, those that no model learned from",
    )
    instead.add_argument("--score", action="store_true", help="say what the answers tell so far")
    sub.epilog = (
        "The page is on this machine alone, and its address is a secret. Images are drawn at "
        "random, more of them where an answer tells more. No model is trained on the answers. They "
        "are in RESULTS/audit, and the workflow scores models by them."
    )


def predict(args: argparse.Namespace) -> int:
    """Classify images with a tuned model."""
    from latteclip.deploy import predict as prediction

    skipped = prediction.predict(
        args.model,
        args.paths,
        args.output,
        topk=args.topk,
        batch_size=args.batch_size,
        precision=args.precision,
        device=args.device,
        threads=args.threads,
        unknown=args.unknown,
        abstain=args.abstain,
    )
    return SKIPPED if skipped else 0


def add_predict(sub: argparse.ArgumentParser) -> None:
    """Arguments of predict."""
    _add_model(sub)
    sub.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="image, folder (with all below it), glob, or - for a list on stdin",
    )
    sub.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=".csv, .jsonl or .parquet (default: CSV on stdout)",
    )
    sub.add_argument(
        "-k", "--topk", type=count(), default=1, metavar="K", help="classes per image (default: 1)"
    )
    sub.add_argument(
        "--batch-size",
        type=count(),
        default=256,
        metavar="N",
        help="images encoded at once (default: 256)",
    )
    sub.add_argument(
        "--precision",
        choices=("bf16", "fp16", "float32"),
        default="bf16",
        help="of a GPU's arithmetic (default: bf16)",
    )
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: auto)")
    sub.add_argument(
        "--threads",
        type=threads(),
        default=os.cpu_count(),
        metavar="N",
        help="CPU threads (default: all)",
    )
    sub.add_argument(
        "--unknown",
        action="store_true",
        help="mark images that belong to none of the classes (unknown_score, is_unknown)",
    )
    sub.add_argument(
        "--abstain",
        type=_share,
        metavar="SHARE",
        help="mark the least certain predictions (abstained), so that with 95 %% probability at "
        "most this share of all is wrong and not marked, by the answers of latteclip teach",
    )
    sub.epilog = (
        "Images that cannot be decoded are reported on stderr and left out; the exit status is "
        f"then {SKIPPED}. score is that of the model's classifier, such as the cosine of image and "
        "prototype; probability is the softmax of the scaled scores over all classes."
    )


def export(args: argparse.Namespace) -> None:
    """Write a tuned model as open_clip, transformers or ONNX load it."""
    from latteclip.deploy import export as exporting

    command = exporting.export(args.model, args.destination, args.format, args.licence)
    print(f"To upload it: {command}")


def add_export(sub: argparse.ArgumentParser) -> None:
    """Arguments of export."""
    _add_model(sub)
    sub.add_argument("destination", metavar="DEST", help="new or empty folder")
    sub.add_argument("--format", choices=FORMATS, required=True, help="the library that loads it")
    sub.add_argument(
        "--licence",
        metavar="ID",
        help="licence of the weights, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0, ...",
    )


def status(args: argparse.Namespace) -> None:
    """Show which stages are done, stale or missing, and why."""
    if args.estimate:
        from latteclip.cli import estimate

        print(estimate.estimate(args.datasets, args.config, args.configfile))
        return
    from latteclip.cli import status as report

    print(report.status(args.datasets, args.config, args.configfile, args.sdm, sys.stdout))


def add_status(sub: argparse.ArgumentParser) -> None:
    """Arguments of status."""
    sub.add_argument(
        "datasets",
        nargs="*",
        metavar="DATASET",
        help="dataset keys (default: those with results, else the configured one)",
    )
    _add_configuration(sub)
    sub.add_argument(
        "--sdm",
        nargs="+",
        action="extend",
        default=[],
        metavar="METHOD",
        help="as snakemake takes it: conda or apptainer",
    )
    sub.add_argument(
        "--estimate",
        action="store_true",
        help="instead: hours, tokens and disk of the full run, from what a run with limit=N took",
    )
    sub.epilog = "Run it in the folder of the results, with the options that the run was given."


def doctor(args: argparse.Namespace) -> int:
    """Check this machine, and name what needs repair."""
    from latteclip.cli import doctor as checks

    memory: dict[str, checks.Check] = {
        "kv-cache": lambda: checks.captioner(args.config, args.configfile)
    }
    return 0 if checks.doctor(sys.stdout, memory) else NOT_READY


def add_doctor(sub: argparse.ArgumentParser) -> None:
    """Arguments of doctor."""
    _add_configuration(sub)


def completion(args: argparse.Namespace) -> None:
    """Print the shell's completion script."""
    import shtab

    parser = args.parser()
    for action in _file_actions(parser):
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=args.shell))


def add_completion(sub: argparse.ArgumentParser) -> None:
    """Arguments of completion."""
    sub.formatter_class = argparse.RawDescriptionHelpFormatter
    sub.add_argument("shell", choices=SHELLS)
    sub.epilog = """\
Put a line into the shell's start-up file:
  bash (~/.bashrc)                  eval "$(latteclip completion bash)"
  zsh  (~/.zshrc, after compinit)   eval "$(latteclip completion zsh)"
  fish (~/.config/fish/config.fish) latteclip completion fish | source
  tcsh (~/.tcshrc)                  eval "`latteclip completion tcsh`"
"""


def _add_configuration(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="as snakemake takes it: method=latteclip seeds=5",
    )
    sub.add_argument(
        "--configfile",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="as snakemake takes it",
    )


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "model",
        metavar="MODEL",
        help="results/<dataset>, for the model that was chosen, or "
        "results/<dataset>/<method>/seed<n>/model",
    )


def _file_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments of all commands that are paths."""
    names = {"model", "paths", "output", "destination", "configfile", "show", "pictures"}
    names |= {"results", "offline", "answers"}
    actions = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [a for sub in action.choices.values() for a in _file_actions(sub)]
        elif action.dest in names:
            actions.append(action)
    return actions


# Commands that pass on all their arguments, options included.
PASSTHROUGH = (workflow,)
# In the order of the help.
COMMANDS: dict[Callable[[argparse.Namespace], Any], Callable[[argparse.ArgumentParser], None]] = {
    workflow: add_workflow,
    datasets: add_datasets,
    captions: add_captions,
    labels: add_labels,
    teach: add_teach,
    audit: add_audit,
    predict: add_predict,
    export: add_export,
    status: add_status,
    doctor: add_doctor,
    completion: add_completion,
}
