"""`latteclip classes`: a page on which a person renames, merges and drops the proposed classes."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from latteclip.audit.server import SERVED, PageServer, fill
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import ACTIONS, CLASSES, edited_classes, locked
from latteclip.core.run_options import run_command
from latteclip.discover.names import Ints
from latteclip.discover.proposal import (
    FILE,
    Action,
    read_actions,
    read_proposal,
    replay,
    write_actions,
)

PICTURES = 8  # of a class: the most confident ones, and
DOUBTFUL = 2  # among them the least confident ones
NAMES = 4  # further names of a class


def classes(results: str, /, port: int = 0, no_browser: bool = False) -> str:
    """Open a page to rename, merge and drop the proposed classes.

    What you do is saved in RESULTS/classes.json. Classes, labels, models and pages follow when you
    run the workflow again.
    """
    page = ClassesPage(results)
    PageServer(page, port).show("Every change is saved.", browser=not no_browser)
    return page.result()


class Change(BaseModel, extra="forbid"):
    """An action on a class, or None to take the last action back."""

    action: Action | None


class ClassesPage:
    """The proposed classes of a dataset, and what a person does to them."""

    picture_side = 256

    def __init__(self, results: str | Path) -> None:
        """Read the proposal, or raise UserError."""
        self.folder = Path(results)
        self.dataset = self.folder.absolute().name
        self.path = self.folder / ACTIONS
        proposed = self.folder / FILE
        if not proposed.is_file():
            raise UserError(
                f"{proposed} does not exist: no stage has proposed classes. Run the workflow "
                f"with --config dataset={self.dataset} class_names=discover first."
            )
        self.proposal = read_proposal(proposed)
        self.actions()
        if edited_classes(self.folder) is not None:
            raise UserError(
                f"{self.folder / CLASSES} was edited by hand and is used as it is. Go on there, or "
                "delete it and run the workflow: it returns to the proposal and your actions."
            )
        index = str(self.folder / "unnamed_images.parquet")
        self.paths = tables.read_unlabelled(index, training=True)[0]["path"]

    def actions(self) -> list[Action]:
        """Return what the person did so far, or raise UserError for a damaged file."""
        return read_actions(self.path, self.proposal.about)

    def save(self, content: bytes) -> dict[str, Any]:
        """Save an action, or take the last one back."""
        action = Change.model_validate_json(content).action
        with locked(self.path):
            actions = self.actions()
            actions = actions[:-1] if action is None else [*actions, action]
            replay(self.proposal.about, actions, str(self.path))
            write_actions(self.path, self.proposal.about, actions)
        return self.state()

    def state(self) -> dict[str, Any]:
        """Return the classes as the page draws them, the largest first."""
        about = self.proposal.about
        actions = self.actions()
        state = replay(about, actions, str(self.path))
        labels = state.labels(self.proposal)
        drawn: list[dict[str, Any]] = []
        for number, name in state.names.items():
            members = np.flatnonzero(labels == number)
            parts = np.flatnonzero(state.owner == number)
            names = [other for part in parts for other in about.names[part]]
            others = [other for other in dict.fromkeys(names) if other != name]
            drawn.append(
                {
                    "number": number,
                    "name": name,
                    "images": len(members),
                    "others": others[:NAMES],
                    "pictures": self._pictures(members),
                }
            )
        drawn.sort(key=lambda one: (-one["images"], one["number"]))
        return {"classes": drawn, "actions": len(actions)}

    def _pictures(self, members: Ints) -> list[dict[str, Any]]:
        """Return the images of a class that the page shows, the most confident first."""
        order = members[np.argsort(-self.proposal.confidence[members], kind="stable")]
        n_sure = PICTURES - DOUBTFUL
        rows = [*order[:n_sure], *order[n_sure:][-DOUBTFUL:]]
        return [
            {"row": int(row), "image": self.proposal.image_ids[row], "sure": place < n_sure}
            for place, row in enumerate(rows)
        ]

    def picture(self, number: int) -> str | None:
        return self.paths[number].as_py() if number < len(self.paths) else None

    def render(self) -> tuple[str, str]:
        return fill(
            "latteclip.discover",
            "classes.html",
            "classes.js",
            SERVED,
            dataset=self.dataset,
            by_names=self.proposal.about.by_names,
            again=run_command(self.folder),
            values=self.state(),
        )

    def result(self) -> str:
        """Return what follows from the saved actions."""
        actions = self.actions()
        state = replay(self.proposal.about, actions, str(self.path))
        return (
            f"Classes: {len(state.names)}. Your changes: {len(actions)}. Run the workflow again, "
            f"and classes.txt, labels, models and pages follow:\n  {run_command(self.folder)}"
        )
