"""`python -m latteclip`, and so `torchrun -m latteclip`."""

import sys

from latteclip.cli.main import main

if __name__ == "__main__":  # and not in a process that another one spawns
    sys.exit(main())
