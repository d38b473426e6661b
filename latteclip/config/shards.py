"""The number of jobs that write the captions of a dataset where `captions.shards` is auto.

A run chooses it by the free GPUs and notes it. Later runs take the number from the note, so that
what is finished does not rerun where there are more GPUs, or fewer.
"""

from pathlib import Path

from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.json_files import read_object

AUTO = "auto"
NOTE = "results/{dataset}/captions/shards.json"


def noted(dataset: str) -> int | None:
    """Return the number that an earlier run noted, if one did."""
    path = Path(NOTE.format(dataset=dataset))
    if not path.is_file():
        return None
    number = read_object(path, ["shards"], "delete it")["shards"]
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{path} has no number of shards; delete it.")
    return number


def note(dataset: str, number: int) -> None:
    """Note the number for later runs."""
    path = Path(NOTE.format(dataset=dataset))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"shards": number})
