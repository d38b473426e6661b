"""`latteclip <command>`: the command line as a whole, its help and its exit statuses."""

import argparse
import io
import logging
import os
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

from latteclip import __version__
from latteclip.cli import commands, runs, stages
from latteclip.core.errors import (
    UserError,
    full_disk,
    full_output,
    refused_by_system,
    worker_failure,
)
from latteclip.core.signals import Terminated, unwinding
from latteclip.core.terminal import for_terminal, paint

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
NONE = "\0"  # as the character that options begin with: every argument is a word
DESCRIPTION = "Adapt CLIP to unlabelled images (LatteCLIP, arXiv 2410.08211)."
EPILOG = """\
the workflow is run by snakemake, in any folder, which gets the results:
  latteclip workflow -j4 --config dataset=demo        all stages, to the table of results
  latteclip workflow -n --config dataset=demo         what would run, and why
  latteclip workflow -j4 results/demo/images.parquet  one stage: name a file that it writes
in the folder of the Snakefile, and with its path as -s, "snakemake" does the same

stages, which its rules call (each has --help):
{stages}

exit status:
  0    done
  1    failed: a bug or the machine; of doctor: something is to be mended
  2    bad usage or bad input: one sentence says what, where and what to do
  3    predict: done, but some images could not be decoded
  130  interrupted; what captioning and finetune have done is kept
  143  the same by SIGTERM: a cluster's time limit, scancel
"""


class ClosedOutput(io.TextIOBase):
    """In place of a standard output that is closed: writing is an error that says so."""

    def write(self, text: str) -> int:
        raise UserError("The standard output is closed; open it, or name a file for the output.")


def open_closed() -> None:
    """Take the numbers of closed streams, which the next file that is opened would get.

    A closed input is then empty, what goes to a closed stderr is lost, and a closed output refuses
    what is written.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free, hence this one
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stdout is None:
        sys.stdout = ClosedOutput()
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def flush_output() -> None:
    """Write what the standard output still holds back.

    Raises:
        UserError: it takes no more.
        BrokenPipeError: nobody reads it, as of `latteclip datasets | head`.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(full_output(error)) from None


def drop_unwritten() -> None:
    """Keep the interpreter's end from writing once more what could not be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


class Formatter(logging.Formatter):
    """Messages alone, coloured by level; a traceback only where it is asked for.

    What no terminal may obey is spelt out, and secrets are left out: see `for_terminal`.

    A formatter that adds a traceback leaves it in the record for the next one, hence the copy.
    """

    def __init__(self, stream: TextIO | None, *, tracebacks: bool) -> None:
        """stream: where the messages go; None for a file, which has no colours."""
        super().__init__("%(message)s")
        self.stream, self.tracebacks = stream, tracebacks

    def format(self, record: logging.LogRecord) -> str:
        record = logging.makeLogRecord(record.__dict__)
        record.exc_text = None
        if not self.tracebacks:
            record.exc_info = None
        text = for_terminal(super().format(record))
        if self.stream is None or record.levelno < logging.WARNING:
            return text
        return paint(text, "red" if record.levelno >= logging.ERROR else "yellow", self.stream)


def start_log(*, debug: bool) -> logging.Logger:
    """The package's logger, to stderr."""
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(Formatter(sys.stderr, tracebacks=debug))
    terminal.addFilter(lambda record: not hasattr(record, "on_terminal"))  # printed already
    logging.basicConfig(level=logging.WARNING, handlers=[terminal], force=True)
    log = logging.getLogger("latteclip")
    log.setLevel(logging.INFO if _is_first() else logging.WARNING)
    return log


def add_log_file(file: str) -> None:
    """Log to a file as well, which has the tracebacks of bugs.

    Raises:
        UserError: it cannot be written.
    """
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        if _is_first():
            Path(file).write_text("")
        # To append: vLLM closes all handlers when it starts, and only such a one opens again.
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--log {file} cannot be written ({error.strerror}).") from None
    handler.setFormatter(Formatter(None, tracebacks=True))
    logging.getLogger().addHandler(handler)


def _is_first() -> bool:
    """Whether this is the first of the processes that torchrun starts."""
    return os.environ.get("RANK", "0") == "0"


class Parser(argparse.ArgumentParser):
    """A parser whose error is one line and no usage, which --help shows."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {for_terminal(message)}; see {self.prog} --help.\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Of help and errors; argparse itself says nothing where the output takes no more."""
        (file or sys.stderr).write(message)
        flush_output()


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with one line per command, and none for the choice of a command as such."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):
            return "".join(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)


def parser(stage: str | None = None) -> argparse.ArgumentParser:
    """Return the command line: people's commands, and one of the workflow's stages.

    Args:
        stage: the stage that has been called; the others are not commands then.
    """
    top = Parser(
        prog="latteclip",
        description=DESCRIPTION,
        epilog=EPILOG.format(stages=_stages()),
        formatter_class=Help,
    )
    top.add_argument("--version", action="version", version=f"latteclip {__version__}")
    _add_debug(top, default=False)
    subs = top.add_subparsers(required=True, title="commands", metavar="command")
    for command, add_arguments in commands.COMMANDS.items():
        about = command.__doc__
        passing_on = command in commands.PASSING_ON
        sub = subs.add_parser(
            _name(command.__name__),
            help=about,
            description=about,
            add_help=not passing_on,
            prefix_chars=NONE if passing_on else "-",
        )
        add_arguments(sub)
        sub.set_defaults(command=command, name=command.__name__, parser=parser)
        if not passing_on:
            _add_debug(sub)
    if stage:
        sub = subs.add_parser(_name(stage))  # not in the list
        stages.add_arguments(sub, stage)
        sub.add_argument("--log", help="file that gets the log as well")
        sub.set_defaults(command=partial(stages.run, stage), name=stage)
        _add_debug(sub)
    return top


def _name(function: str) -> str:
    return function.replace("_", "-")


def _stages() -> str:
    """Return the names of the stages for the epilog."""
    return textwrap.fill(
        ", ".join(map(_name, stages.STAGES)),
        width=78,
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
    )


def _stage_called(arguments: Sequence[str]) -> str | None:
    """Return the stage whose command the arguments begin with, after options."""
    word = next((word for word in arguments if not word.startswith("-")), "")
    stage = word.replace("-", "_")
    return stage if _name(stage) == word and stage in stages.STAGES else None


def _add_debug(sub: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """The option before or after the command: what is not given must not undo what is."""
    sub.add_argument(
        "--debug", action="store_true", default=default, help="show where an error came from"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is one of those in EPILOG."""
    # Read when torch is loaded: its threads wait asleep, for others decode on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    open_closed()
    try:
        return _run(arguments)
    finally:
        drop_unwritten()


def _run(arguments: Sequence[str] | None) -> int:
    """Every way in which a command may end has a status."""
    logger, name, debug = start_log(debug=False), "latteclip", False
    try:
        given = sys.argv[1:] if arguments is None else arguments
        args = parser(_stage_called(given)).parse_args(given)
        name, debug = _name(args.name), args.debug
        return _finished(args)
    except UserError as error:
        logger.error("error: %s", error, exc_info=debug)
        return BAD_INPUT
    except BrokenPipeError:  # of `latteclip datasets | head`
        return FAILED
    except (KeyboardInterrupt, Terminated) as stopped:
        logger.error("interrupted")
        return stopped.status if isinstance(stopped, Terminated) else INTERRUPTED
    except Exception as error:
        if sentence := full_disk(error) or refused_by_system(error):
            logger.error("error: %s", sentence, exc_info=debug)
            return BAD_INPUT
        if said := worker_failure(error):
            logger.error("error: %s", said, exc_info=debug)
            return FAILED
        logger.exception(
            "error: %s failed (%s: %s); --debug shows where.",
            name,
            type(error).__name__,
            error,
        )
        return FAILED


def _finished(args: argparse.Namespace) -> int:
    """The status of a command that comes to its end, with its output written."""
    start_log(debug=args.debug)
    with unwinding():
        if file := getattr(args, "log", None):
            add_log_file(file)
        runs.log_job()
        status: int = args.command(args) or 0
        flush_output()
    return status
