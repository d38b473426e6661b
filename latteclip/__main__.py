"""The command `latteclip`, also as `python -m latteclip`, and so `torchrun -m latteclip`."""

import gc
import sys

from latteclip.cli.main import main

# What is imported stays: looking for garbage among it, each time that there are 700 objects more
# and at the end, takes a third of the CPU time in which torch and open_clip are imported.
OBJECTS = 50_000


def process() -> int:
    """Run one command as what this process is for; its exit status."""
    gc.set_threshold(OBJECTS)
    status = main()
    gc.freeze()
    return status


if __name__ == "__main__":  # and not in a process that another one spawns
    sys.exit(process())
