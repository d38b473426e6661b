"""Read the files of the configuration and lay them over each other.

A project is a folder in which the workflow runs. Its folder `config` may hold a `config.yaml` and
files of datasets, which win over the shipped ones. In a clone both folders are the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from latteclip.core.errors import UserError
from latteclip.core.terminal import one_line

Layer = Mapping[str, Any]
PACKAGE = Path(__file__).resolve().parents[1]
# The workflow's files are beside the package in a clone, inside it once installed (pyproject.toml).
INSTALLED = PACKAGE / "shipped"
ROOT = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent
SNAKEFILE = ROOT / "Snakefile"
CONFIG = ROOT / "config"
PROJECT = Path("config")  # the project's configuration, in the working folder


class _Loader(yaml.CSafeLoader):
    """Refuses a key that is given twice, of which YAML's loaders take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        if len(set(keys)) < len(keys):
            problem = f"the key {max(keys, key=keys.count)} is there twice"
            raise yaml.MarkedYAMLError(
                problem=problem, problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def merge(*layers: Layer | None) -> dict[str, Any]:
    """Return a copy of the first mapping with each later one laid over it, key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in (layer or {}).items():
            if isinstance(value, Mapping):
                below = result.get(key)
                value = merge(below if isinstance(below, Mapping) else None, value)
            result[key] = value
    return result


def defaults(project: Path | None = PROJECT) -> dict[str, Any]:
    """Return the configuration of the files, those of a project over the shipped ones."""
    folders = [CONFIG]
    if project and project.is_dir() and not project.samefile(CONFIG):
        folders.append(project)
    files = [
        file
        for folder in folders
        for name in ("config.yaml", "datasets/*.yaml")
        for file in sorted(folder.glob(name))
    ]
    return merge(*map(read, files))


def read(path: str | Path) -> dict[str, Any]:
    """Return the keys of a file, or raise UserError with its name and the line of a mistake.

    In a shipped file, {package} is the package. Its path is relative if the package is below the
    working folder: both may move together.
    """
    file, here = Path(path), Path.cwd().resolve()
    try:
        text = file.read_text(encoding="utf-8")
        if file.is_relative_to(CONFIG):
            package = PACKAGE
            if package.is_relative_to(here):
                package = package.relative_to(here)
            text = text.replace("{package}", str(package))
        content = yaml.load(text, _Loader) or {}
    # Also a date of no calendar, and bytes that are not UTF-8.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid YAML: {one_line(error)}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must contain keys with values.")
    return content
