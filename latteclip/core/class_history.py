"""Classes that a stage proposed, and what a person did to them: beside the results."""

from pathlib import Path
from typing import Any

from latteclip.core.errors import DELETE
from latteclip.core.files import locked, read_object, write_json
from latteclip.core.folder_names import CLASSES, lines_of

ACTIONS = "classes.json"  # a person's actions, and the history of edits
PROPOSAL = "discovery.json"
BY_HAND = "edited by hand"  # the names of each edit


def edited_classes(folder: str | Path) -> list[str] | None:
    """Return the names in the results' classes.txt if a person wrote or edited it, else None.

    UserError: it is not UTF-8.
    """
    path = Path(folder, CLASSES)
    if not path.is_file():
        return None
    names = lines_of(path)
    return None if names == _proposed(folder) else names


def _proposed(folder: str | Path) -> list[str] | None:
    """Return the names of the classes that the stage wrote."""
    path = Path(folder, PROPOSAL)
    if not path.is_file():
        return None
    classes = read_object(path, ("classes",), DELETE)["classes"]
    return [row["name"] for row in classes]


def note_edit(folder: str | Path, names: list[str]) -> None:
    """Note the names of an edit by hand in the history, once."""
    with locked(Path(folder, ACTIONS)):
        history = read_history(folder)
        edits = history.get(BY_HAND, [])
        if edits[-1:] == [names]:
            return
        proposal = Path(folder, PROPOSAL)
        known = read_object(proposal, ("proposal",), DELETE) if proposal.is_file() else {}
        begin = {"proposal": known.get("proposal", ""), "actions": []}
        write_json(Path(folder, ACTIONS), {**begin, **history, BY_HAND: [*edits, names]})


def read_history(folder: str | Path) -> dict[str, Any]:
    """Return the content of classes.json, empty where there is no file."""
    path = Path(folder, ACTIONS)
    return read_object(path, ("actions",), DELETE) if path.is_file() else {}
