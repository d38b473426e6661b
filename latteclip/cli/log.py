"""The log of a command: to stderr, and to the log file of its rule."""

import logging
import os
import sys
from pathlib import Path

from latteclip.cli.colours import Formatter
from latteclip.core.errors import UserError


def start(*, debug: bool) -> logging.Logger:
    """The package's logger, to stderr."""
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(Formatter(sys.stderr, tracebacks=debug))
    terminal.addFilter(lambda record: not hasattr(record, "on_terminal"))  # printed already
    logging.basicConfig(level=logging.WARNING, handlers=[terminal], force=True)
    log = logging.getLogger("latteclip")
    log.setLevel(logging.INFO if _is_first() else logging.WARNING)
    return log


def add_file(file: str) -> None:
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
