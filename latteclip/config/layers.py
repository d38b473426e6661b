"""The files of the configuration: those that are shipped, and those of a project laid over them.

A project is a folder in which the workflow runs; in its own folder `config` it may have a
`config.yaml` and files of datasets. In a clone both folders are the same.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latteclip.config import shipped, yaml_files
from latteclip.config.model_names import FOLDER
from latteclip.core.errors import UserError
from latteclip.core.foreign import in_short
from latteclip.core.plain_values import refuse_unfit

Config = Mapping[str, Any]
PROJECT = Path("config")  # of the working folder
# Keys of a shipped dataset that may name a folder beside the package, and what stands before it.
FOLDERS = {"clip": FOLDER, "captioner": ""}


def merge(*layers: Config | None) -> dict[str, Any]:
    """A copy of the first mapping with each later one laid over it, key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in (layer or {}).items():
            mine = result.get(key)
            both = isinstance(mine, Mapping) and isinstance(value, Mapping)
            result[key] = merge(mine, value) if both else value
    return result


def difference(config: Config, base: Config) -> dict[str, Any]:
    """The leaves of a mapping that another one lacks or has otherwise."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        other = base.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            value = difference(value, other)
            if not value:
                continue
        elif key in base and value == other:
            continue
        result[key] = value
    return result


def defaults(project: Path | None = PROJECT) -> dict[str, Any]:
    """The configuration as files have it, those of a project over those that are shipped.

    Args:
        project: its folder of configuration; None to read the shipped files alone.

    Raises:
        UserError: a file is not valid YAML, or does not hold a mapping.
    """
    return merge(*(_read(file) for folder in _folders(project) for file in _files(folder)))


def datasets(project: Path | None = PROJECT) -> dict[str, dict[str, Any]]:
    """What files say of datasets, by key in alphabetical order.

    Raises:
        UserError: a file is not valid YAML, or does not hold a mapping.
    """
    files = (file for folder in _folders(project) for file in _files(folder)[1:])
    found = merge(*(_read(file) for file in files)).get("datasets", {})
    return dict(sorted(found.items()))


def given(pairs: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """What a command line lays over the files of the configuration, as snakemake takes it.

    Args:
        pairs: KEY=VALUE of --config, which win; a value is YAML.
        files: of --configfile, the later one winning.

    Raises:
        UserError: a file is not there or not valid, or a pair is none.
    """
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"Configuration file {file} does not exist; check --configfile.")
    return merge(*(_read(Path(file)) for file in files), *map(_pair, pairs))


def _pair(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if key and equals:
        what = f"--config {in_short(text)}"
        pair = {key: yaml_files.parsed(value, what)}
        refuse_unfit(pair, what)
        return pair
    raise UserError(f"--config {in_short(text)} is not KEY=VALUE; correct it.")


def _folders(project: Path | None) -> Iterator[Path]:
    yield shipped.CONFIG
    if project is not None and project.is_dir() and not project.samefile(shipped.CONFIG):
        yield project


def _files(folder: Path) -> list[Path]:
    """config.yaml, which need not be there, and then the files of datasets."""
    return [folder / "config.yaml", *sorted((folder / "datasets").glob("*.yaml"))]


def _read(file: Path) -> dict[str, Any]:
    content = yaml_files.read(file)
    own = content.get("datasets", {})
    if not isinstance(own, Mapping) or not all(isinstance(one, Mapping) for one in own.values()):
        raise UserError(
            f"Configuration file {file}: datasets must hold keys of datasets, each with keys of "
            "its own."
        )
    if file.is_relative_to(shipped.CONFIG):
        for values in own.values():
            _find_folders(values)
    return content


def _find_folders(values: dict[str, Any]) -> None:
    """Let the folders that a shipped dataset names be found from any working folder."""
    for section, prefix in FOLDERS.items():
        named = values.get(section)
        model = named.get("model") if isinstance(named, Mapping) else None
        if isinstance(model, str) and model.startswith(prefix):
            folder = shipped.PACKAGE.parent / model.removeprefix(prefix)
            if model != prefix and os.path.isdir(folder):
                values[section]["model"] = prefix + shipped.seen_from_here(folder)
