"""The command `latteclip`, also as `python -m latteclip`, and so `torchrun -m latteclip`."""

import atexit
import gc
import os
import sys

# What is imported stays. Looking for garbage among it, each time that there are 700 objects more,
# and taking it apart in the end are a third of the CPU time in which torch and open_clip are
# imported.
OBJECTS = 50_000
_ended: list[int] = []  # the status of the command


def _leave() -> None:
    if _ended:
        os._exit(_ended[0])


atexit.register(_leave)  # before others: it comes after theirs

from latteclip.cli.main import main  # noqa: E402


def process() -> int:
    """Run one command as what this process is for; its exit status."""
    gc.set_threshold(OBJECTS)
    _ended.append(main())
    return _ended[0]


if __name__ == "__main__":  # and not in a process that another one spawns
    sys.exit(process())
