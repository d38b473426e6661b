"""Kinds of arguments, and a command line that says in one line what is wrong with one."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from latteclip.cli import streams
from latteclip.core.foreign import shown

MOST = 2**20  # of anything that is counted


class Parser(argparse.ArgumentParser):
    """A parser whose error is one line and no usage, which --help shows."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {shown(message)}; see {self.prog} --help.\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Of help and errors; argparse itself says nothing where the output takes no more."""
        (file or sys.stderr).write(message)
        streams.flush_output()


def count(least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """The kind of a whole number from `least` to `most`."""

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
    """The kind of a number of threads: at most as many as this machine has cores."""
    return count(1, os.cpu_count() or 1)
