#!/bin/sh
# Snakemake runs this when it has made the environment of latteclip.yaml, which is active; the
# workflow says where this folder is. An installed package would not follow the edits that rules
# track, an editable one would tie the environment to one copy of the repository.
install -m 755 "$LATTECLIP_ENVS/latteclip.sh" "$CONDA_PREFIX/bin/latteclip"
