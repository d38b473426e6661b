#!/bin/sh
# Snakemake runs this in the folder of the Snakefile when it has made the environment of
# latteclip.yaml, which is active. An installed package would not follow the edits that rules track,
# an editable one would tie the environment to one copy of the repository.
install -m 755 envs/latteclip.sh "$CONDA_PREFIX/bin/latteclip"
