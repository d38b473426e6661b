"""Where the workflow's files are: beside the package in a clone, inside it once installed."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "shipped"  # of a wheel (pyproject.toml); a clone has no such folder
ROOT = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent
SNAKEFILE = ROOT / "Snakefile"
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
CONFIG = ROOT / "config"


def seen_from_here(path: str | Path) -> str:
    """A path relative to the working folder where it is inside, absolute otherwise."""
    absolute, here = os.path.realpath(path), os.path.realpath(".")
    inside = os.path.commonpath([absolute, here]) == here
    return os.path.relpath(absolute, here) if inside else absolute
