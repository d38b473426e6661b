"""`latteclip <command>`: the command line as a whole, its help and its exit statuses."""

import argparse
import os
from collections.abc import Callable, Sequence

from latteclip.cli import cluster, log, people, stages, streams
from latteclip.cli.arguments import Parser
from latteclip.core import worker_errors
from latteclip.core.errors import UserError, full_disk, refused_by_system
from latteclip.core.signals import Terminated, unwinding
from latteclip.core.version import __version__

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


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with one line per command, and none for the choice of a command as such."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):
            return "".join(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)


def parser() -> argparse.ArgumentParser:
    """The command line: people's commands, then those of the workflow's rules.

    Of the latter, "?" ends an optional name and "..." a positional one.
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
    for person_command, add_arguments in people.COMMANDS.items():
        about = person_command.__doc__
        passing_on = person_command in people.PASSING_ON
        sub = subs.add_parser(
            _name(person_command),
            help=about,
            description=about,
            add_help=not passing_on,
            prefix_chars=NONE if passing_on else "-",
        )
        add_arguments(sub)
        sub.set_defaults(command=person_command, parser=parser)
        if not passing_on:
            _add_debug(sub)
    for command, options in stages.COMMANDS.items():
        sub = subs.add_parser(_name(command), description=command.__doc__)  # not in the list
        sub.set_defaults(command=command)
        for option in options:
            if option.endswith("..."):
                sub.add_argument(option.removesuffix("..."), nargs="+")
            else:
                known = stages.OPTIONS.get(option, {"required": not option.endswith("?")})
                sub.add_argument(f"--{option.removesuffix('?')}", **known)  # type: ignore[arg-type]
        sub.add_argument("--log", help="file that gets the log as well")
        _add_debug(sub)
    return top


def _name(command: Callable[..., object]) -> str:
    return command.__name__.replace("_", "-")


def _stages() -> str:
    """One line per stage for the epilog."""
    width = max(len(_name(command)) for command in stages.COMMANDS)
    return "\n".join(
        f"  {_name(command):{width}}  {command.__doc__}" for command in stages.COMMANDS
    )


def _add_debug(sub: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """The option before or after the command: what is not given must not undo what is."""
    sub.add_argument(
        "--debug", action="store_true", default=default, help="show where an error came from"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is one of those in EPILOG."""
    # Read when torch is loaded: its threads wait asleep, for others decode on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    streams.open_closed()
    try:
        return _run(arguments)
    finally:
        streams.drop_unwritten()


def _run(arguments: Sequence[str] | None) -> int:
    """Every way in which a command may end has a status."""
    logger, name, debug = log.start(debug=False), "latteclip", False
    try:
        args = parser().parse_args(arguments)
        name, debug = _name(args.command), args.debug
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
        if said := worker_errors.in_words(error):
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
    log.start(debug=args.debug)
    with unwinding():
        if file := getattr(args, "log", None):
            log.add_file(file)
        cluster.log_job()
        status: int = args.command(args) or 0
        streams.flush_output()
    return status
