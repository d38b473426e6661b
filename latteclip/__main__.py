"""`python -m latteclip`, and so `torchrun -m latteclip`."""

import sys

from latteclip.cli import main

sys.exit(main())
