"""`python -m latteclip`, and so `torchrun -m latteclip`."""

import sys

from latteclip.cli.main import main

sys.exit(main())
