"""The options of the last run of each dataset in this folder, for `latteclip status`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latteclip.cli.locks import FOLDER
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.json_files import read_object

NOTES = FOLDER / "latteclip_options"


@dataclass(frozen=True)
class Options:
    """What a run was given beside its dataset."""

    config: Mapping[str, Any]  # --config laid over the contents of --configfile
    deployment: Sequence[str]  # --sdm


def note(datasets: Mapping[str, str], config: Mapping[str, Any], deployment: Sequence[str]) -> None:
    """Note the options of a run of some datasets.

    Args:
        datasets: keys below results, and those that the configuration names.
        config: --config laid over the contents of --configfile.
        deployment: --sdm.
    """
    asked = list(datasets.values())
    values = {"config": {**config, "dataset": asked}, "deployment": sorted(deployment)}
    for dataset in datasets:
        write_json(NOTES / f"{dataset}.json", values)


def read(dataset: str) -> Options | None:
    """The options of the last run of a dataset; None where none was noted."""
    path = NOTES / f"{dataset}.json"
    if not path.is_file():
        return None
    try:
        values = read_object(path, ("config", "deployment"))
    except UserError:  # a note that is damaged is as good as none
        return None
    return Options(values["config"], values["deployment"])


def noted() -> list[str]:
    """Return the datasets whose last run was noted."""
    return sorted(path.stem for path in NOTES.glob("*.json"))
