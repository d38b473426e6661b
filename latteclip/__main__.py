"""The command `latteclip`, also as `python -m latteclip`."""

import sys

from latteclip.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
