"""Options of the last run of each dataset, and the command that repeats the run."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latteclip.core.errors import CORES, DELETE, UserError
from latteclip.core.files import read_object, write_json

# Notes in the folder in which the workflow runs.
NOTES = Path(".snakemake", "latteclip_options")


def note_options(datasets: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Note `config` of a run. `datasets` maps names below results to those configured."""
    whole = {**config, "dataset": list(datasets.values())}
    for dataset in datasets:
        write_json(NOTES / f"{dataset}.json", whole)


def read_options(dataset: str, root: Path = Path()) -> dict[str, Any] | None:
    """Return `config` of the last run of a dataset, if there was one."""
    path = root / NOTES / f"{dataset}.json"
    if not path.is_file():
        return None
    return read_object(path, remedy=DELETE)


def noted_datasets() -> list[str]:
    """Return the datasets that have been run here."""
    return sorted(path.stem for path in NOTES.glob("*.json"))


def has_own_workflow(root: Path = Path()) -> bool:
    """Return whether snakemake finds a workflow in a folder by itself."""
    return (root / "Snakefile").is_file() or (
        root / "workflow" / "Snakefile"
    ).is_file()


def pairs(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the arguments of `--config` that give these values."""
    for key, value in sorted(config.items()):
        # YAML does not read the two \u.... of an emoji as a character.
        text = json.dumps(value, ensure_ascii=False)
        yield f"{key}={value if isinstance(value, str) else text}"


def run_command(
    results: str | Path, target: str = "", **config: str | dict[str, Any]
) -> str:
    """Return the command that runs the workflow for a dataset again, or makes a target of it.

    `results` is the folder of the dataset's results. The options are those of its last run, but for
    those of `config`, and for the keys of sections of `config`.
    """
    folder = Path(os.path.abspath(results))
    root = folder.parent.parent if folder.parent.name == "results" else Path.cwd()
    options = read_options(folder.name, root) or {}
    options.pop("dataset", None)
    for key, value in config.items():
        if isinstance(value, dict):
            value = {**options.get(key, {}), **value}
        options[key] = value
    dataset = folder.name
    if limit := options.get("limit"):
        dataset = dataset.removesuffix(f"_{limit}")
    arguments = [] if root == Path.cwd() else ["--directory", str(root)]
    if target:
        arguments.append(target)
    return _command(
        root, *arguments, "--config", f"dataset={dataset}", *pairs(options)
    )


def refuse_no_results(results: str | Path) -> None:
    """Raise UserError for a dataset's results that are not there."""
    if not Path(results).is_dir():
        raise UserError(
            f"{results} is no folder; give results/<dataset>, or run the workflow first: "
            f"{run_command(results)}."
        )


def rerun_command(config: Mapping[str, Any]) -> str:
    """Return the command that runs the workflow here with `config` of a command line."""
    return _command(Path(), *(["--config", *pairs(config)] if config else []))


def _command(root: Path, *arguments: str) -> str:
    program = (
        ["snakemake"] if has_own_workflow(root) else ["latteclip", "workflow"]
    )
    return shlex.join([*program, *CORES.split(), *arguments])


def labels_path(folder: Path) -> Path:
    """Return the table FUSED_LABELS of a dataset's results.

    UserError: there is none, or the index has other classes since, as after a run that failed.
    """
    # Here: commands without tables start at once.
    from latteclip.core.tables import ClassesMetadata, IndexMetadata, read_metadata

    path = folder / "fused_labels.parquet"
    index = folder / "images.parquet"
    if not path.is_file():
        command = run_command(folder, "labels")
        raise UserError(
            f"{path} does not exist: give a folder results/<dataset>, or run the "
            f"workflow first, {command}."
        )
    labelled = read_metadata(path, ClassesMetadata).classnames
    if labelled != read_metadata(index, IndexMetadata).classnames:
        raise UserError(
            f"The classes of {index} have changed since the labels of {path} were made; run the "
            f"workflow again: {run_command(folder)}."
        )
    return path
