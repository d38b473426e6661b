"""`latteclip classes`: a page on which a person renames, merges and drops the proposed classes."""

from pathlib import Path
from typing import Any

import numpy as np

from latteclip.audit.server import SCRIPT, SERVED, PageServer
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import (
    ACTIONS,
    CLASSES,
    edited_classes,
    from_json,
    locked,
    write_record,
)
from latteclip.core.run_options import run_command
from latteclip.discover.proposal import (
    FILE,
    Action,
    Actions,
    of_number,
    read_actions,
    read_proposal,
    replay,
)
from latteclip.report.render import fill

PICTURES = 8  # of a class


def classes(results: str, /, port: int = 0, no_browser: bool = False) -> str:
    """Open a page to rename, merge, drop or leave out the proposed classes.

    What you do is saved in RESULTS/classes.json. Classes, labels, models and pages follow when you
    run the workflow again.
    """
    page = ClassesPage(results)
    PageServer(page, port).show(browser=not no_browser)
    return page.result()


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
        read_actions(self.path, self.proposal.about)
        if edited_classes(self.folder) is not None:
            raise UserError(
                f"{self.folder / CLASSES} was edited by hand and is used as it is. Go on there, or "
                "delete it and run the workflow: it returns to the proposal and your actions."
            )
        index = str(self.folder / "unnamed_images.parquet")
        self.paths = tables.read_unlabelled(index, training=True)[0]["path"]

    def save(self, content: bytes) -> dict[str, Any]:
        """Save some actions, or take the last one back if there are none."""
        new = from_json(
            list[Action], content.decode(errors="replace"), "The request"
        )
        about = self.proposal.about
        with locked(self.path):
            actions = read_actions(self.path, about)
            actions = [*actions, *new] if new else actions[:-1]
            replay(about, actions)
            write_record(self.path, Actions(about.digest, actions))
        return self.state()

    def state(self) -> dict[str, Any]:
        """Return the classes as the page draws them, the largest first."""
        about = self.proposal.about
        actions = read_actions(self.path, about)
        names, owner = replay(about, actions)
        labels = owner[self.proposal.labels]
        drawn: list[dict[str, Any]] = []
        for number, name in names.items():
            members = np.flatnonzero(labels == number)
            parts = np.flatnonzero(owner == number)
            others = dict.fromkeys(
                other for part in parts for other in about.names[part]
            )
            others.pop(name, None)
            some = members[np.linspace(0, len(members) - 1, PICTURES).astype(int)]
            rows = np.unique(some).tolist()
            drawn.append(
                {
                    "number": number,
                    "name": name,
                    "images": len(members),
                    "others": [*others],
                    "pictures": [
                        [row, self.proposal.image_ids[row]] for row in rows
                    ],
                }
            )
        drawn.sort(key=lambda one: -one["images"])
        return {"classes": drawn, "actions": len(actions)}

    def picture(self, number: int) -> str | None:
        return self.paths[number].as_py() if number < len(self.paths) else None

    def render(self) -> tuple[str, str]:
        return fill(
            "classes.html",
            [SCRIPT, "classes.js"],
            SERVED,
            dataset=self.dataset,
            other=of_number(self.folder, len(self.proposal.about.names)),
            listed=self.folder / CLASSES,
            again=run_command(self.folder),
            values=self.state(),
        )

    def result(self) -> str:
        """Return what to do after the page."""
        return (
            "Run the workflow again. Classes, labels, models and pages follow your changes:\n  "
            f"{run_command(self.folder)}"
        )
