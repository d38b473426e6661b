"""The log of a command: to stderr, and to the log file of its rule."""

import logging
import os
import sys
from pathlib import Path

from latteclip.cli.colours import Formatter


def start(file: str | None, *, debug: bool) -> logging.Logger:
    """The package's logger, to stderr and a file; the file has the tracebacks of bugs."""
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(Formatter(sys.stderr, tracebacks=debug))
    handlers: list[logging.Handler] = [terminal]
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        if is_first:
            Path(file).write_text("")
        # To append: vLLM closes all handlers when it starts, and only such a one opens again.
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
        handlers[-1].setFormatter(Formatter(None, tracebacks=True))
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    log = logging.getLogger("latteclip")
    log.setLevel(logging.INFO if is_first else logging.WARNING)
    return log
