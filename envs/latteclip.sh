#!/bin/sh
# The command `latteclip` of environments without the package: runs the code beside the Snakefile,
# to which the workflow has PYTHONPATH point.
exec python -m latteclip "$@"
