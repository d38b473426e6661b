#!/bin/sh
# The command `latteclip` of environments without the package: runs the code of the current folder.
exec python -m latteclip "$@"
