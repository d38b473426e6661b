"""`latteclip <command>`: the tables of all commands, the help, and the exit statuses.

Code is imported when it runs, so that --help needs no torch. It returns its output or exit status.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from latteclip import __version__
from latteclip.cli import arguments
from latteclip.core.errors import (
    Signals,
    Terminated,
    UserError,
    first_line,
    full_disk,
    refused_by_system,
    worker_failure,
)
from latteclip.core.terminal import SHORT, for_terminal

# Users' commands: the modules of their functions, in the order of the help.
COMMANDS = {
    "workflow": __name__,
    "datasets": "latteclip.data.download_dataset",
    "labels": "latteclip.deploy.export_labels",
    "teach": "latteclip.audit.teach",
    "classes": "latteclip.discover.classes",
    "audit": "latteclip.audit.audit",
    "rename_class": "latteclip.audit.audit",
    "predict": "latteclip.deploy.predict",
    "export": "latteclip.deploy.export_model",
    "status": "latteclip.cli.status",
    "doctor": "latteclip.cli.doctor",
}
# The commands of the workflow's rules, in the order of the stages.
STAGES = {  # by command: the module of its function
    "download_dataset": "latteclip.data.download_dataset",
    "download_model": "latteclip.clip.download_models",
    "index_images": "latteclip.data.index_images",
    "find_duplicates": "latteclip.data.find_duplicates",
    "encode_images": "latteclip.clip.encode_images",
    "encode_examples": "latteclip.clip.encode_images",
    "pseudo_label_images": "latteclip.labels.pseudo_label_images",
    "caption_images": "latteclip.captions.caption",
    "propose_classes": "latteclip.discover.propose",
    "discover_classes": "latteclip.discover.discover_classes",
    "score_classes": "latteclip.captions.score_classes",
    "gather_captions": "latteclip.captions.caption",
    "write_votes": "latteclip.labels.write_votes",
    "adapt_zero_shot": "latteclip.labels.fuse_labels",
    "fuse_labels": "latteclip.labels.fuse_labels",
    "score_unknown": "latteclip.labels.score_unknown",
    "find_learning_rate": "latteclip.train.find_learning_rate",
    "finetune": "latteclip.train.finetune",
    "average_weights": "latteclip.evaluate.average_weights",
    "evaluate": "latteclip.evaluate.evaluate",
    "evaluate_classifier": "latteclip.evaluate.evaluate_classifier",
    "score_audit": "latteclip.audit.score",
    "select_model": "latteclip.evaluate.select_model",
    "summarize": "latteclip.report.summarize",
    "report_dataset": "latteclip.report.report_dataset",
}
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
HELP = {"-h", "--help"}
DESCRIPTION = "Adapt CLIP to unlabelled images (LatteCLIP, arXiv 2410.08211)."
EPILOG = """\
run the workflow in any folder, where the results are written:
  latteclip workflow --cores all --config dataset=demo        all stages, up to the table of results
  latteclip workflow -n --config dataset=demo                 what would run, and why
  latteclip workflow --cores all results/demo/images.parquet  one stage: name a file that it writes
in the folder of the Snakefile, or with -s SNAKEFILE, "snakemake" does the same

each stage that its rules call is a command as well: latteclip index-images --help

exit status:
  0    done
  1    failed: a bug or the machine; doctor: something needs repair
  2    bad usage or bad input: the message says what to do
  3    predict: done, but some images could not be decoded
  130  interrupted; captions and checkpoints are saved
  143  interrupted by SIGTERM: a cluster's time limit, scancel
"""


def drop_unwritten() -> None:
    """Discard output that cannot be written, which the interpreter would try again at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


class Formatter(logging.Formatter):
    """Formats messages without secrets."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__("%(message)s")
        self.tracebacks = tracebacks

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return super().formatException(ei) if self.tracebacks else ""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


def start_log() -> logging.Logger:
    """Return the package's logger, which writes to stderr."""
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(Formatter(tracebacks=not os.environ.get(SHORT)))
    logging.basicConfig(level=logging.WARNING, handlers=[terminal], force=True)
    log = logging.getLogger("latteclip")
    log.setLevel(logging.INFO)
    return log


def add_log_file(file: str) -> None:
    """Log to a file as well, with the tracebacks of bugs.

    In a run of the workflow, the file also gets what libraries write to stderr, and the terminal,
    which all jobs share, only what `_is_for_run`.
    """
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text("")
    if os.environ.get(SHORT):
        stderr = sys.stderr.fileno()
        terminal = os.fdopen(os.dup(stderr), "w", buffering=1)
        [handler] = logging.getLogger().handlers
        handler.setStream(terminal)  # type: ignore[attr-defined]
        handler.addFilter(_is_for_run)
        with Path(file).open("a") as opened:
            os.dup2(opened.fileno(), stderr)
    # To append: vLLM closes all handlers when it starts, and only such a one opens again.
    log = logging.FileHandler(file, encoding="utf-8")
    log.setFormatter(Formatter(tracebacks=True))
    logging.getLogger().addHandler(log)


def _is_for_run(record: logging.LogRecord) -> bool:
    """Return whether a message is ours, and a warning or one with FOR_RUN.

    The run prints the errors of its jobs when it ends.
    """
    is_own = record.name.partition(".")[0] == "latteclip"
    return is_own and (
        record.levelno == logging.WARNING or hasattr(record, "is_for_run")
    )


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage that --help shows."""

    def error(self, message: str) -> NoReturn:
        self.exit(
            2,
            f"error: {self.prog}: {for_terminal(message)}; see {self.prog} --help.\n",
        )


def parser(given: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the command line: the commands of users, and the stage of the workflow in `given`."""
    layout = argparse.RawDescriptionHelpFormatter
    top = Parser(
        prog="latteclip",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=layout,
    )
    top.add_argument(
        "--version", action="version", version=f"latteclip {__version__}"
    )
    subs = top.add_subparsers(required=True, title="commands", metavar="command")
    words = [word.replace("-", "_") for word in given[:1]]
    stage = {word: STAGES[word] for word in words if word in STAGES}
    for name, module in {**COMMANDS, **stage}.items():
        options: dict[str, Any] = {}
        if name in COMMANDS:  # the list of commands has no stages
            options["help"] = arguments.first_line(module, name)
        sub = subs.add_parser(name.replace("_", "-"), **options)
        arguments.add_arguments(sub, module, name)
        sub.set_defaults(run=partial(arguments.run, module, name))
        if name in stage:
            sub.add_argument("--log", help="file that gets the log as well")
    return top


def main(given: Sequence[str] | None = None) -> int:
    """Run one command, report its errors, and return its exit status, one of those in EPILOG."""
    # torch reads it when it is imported. Its idle threads then leave the cores to decoders.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if given is None else given
    if given[:1] == ["workflow"] and not HELP & set(given[1:2]):
        workflow(given[1:])  # all that follows is of snakemake, options included
    log = start_log()
    try:
        args = parser(given).parse_args(given)
        # As Ctrl-C: temporary files are removed.
        with Signals().received(signal.SIGTERM):
            if file := getattr(args, "log", None):
                add_log_file(file)
            result = args.run(args)
            if isinstance(result, str):
                print(for_terminal(result))
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:  # `latteclip datasets | head` ends so
        return FAILED
    except (KeyboardInterrupt, Terminated) as stopped:
        log.error("interrupted")
        return stopped.status if isinstance(stopped, Terminated) else INTERRUPTED
    except Exception as error:
        of_system = full_disk(error) or refused_by_system(error)
        of_user = str(error) if isinstance(error, UserError) else of_system
        if sentence := of_user or worker_failure(error):
            log.error("error: %s", sentence)
        else:
            log.exception("error: a bug, or the machine (%s)", first_line(error))
        return BAD_INPUT if of_user else FAILED
    finally:
        drop_unwritten()


def workflow(arguments: Sequence[str], /) -> NoReturn:
    """Run the workflow in this folder, by snakemake.

    `snakemake --help` lists the arguments. The Snakefile is the package's own.

    Args:
        arguments: as snakemake takes them: --cores all --config dataset=demo
    """
    from latteclip.config import layers

    sys.stdout.flush()
    program = [sys.executable, "-m", "snakemake"]
    place = ["--snakefile", str(layers.SNAKEFILE), "--directory", "."]
    # It gets all signals.
    os.execv(sys.executable, [*program, *place, *arguments])
