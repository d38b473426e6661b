"""`latteclip classes`: a page on which a person corrects the proposed classes."""

import hashlib
import itertools
import json
import logging
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from latteclip.audit.page import OFFLINE, data_uri
from latteclip.audit.server import (
    HTML,
    JSON,
    SERVED,
    QuestionServer,
    RefusedError,
    Reply,
    as_json,
    served_picture,
    show,
)
from latteclip.core import tables
from latteclip.core.class_history import ACTIONS, PROPOSAL, edited_classes
from latteclip.core.errors import UserError
from latteclip.core.files import write_text
from latteclip.core.folder_names import CLASSES
from latteclip.core.run_options import run_command
from latteclip.discover.inputs import (
    LEAVES_FILE,
    MEMBERS_FILE,
    read_actions,
    read_proposal,
    write_actions,
)
from latteclip.discover.new_classes import show_added_class, show_new_classes
from latteclip.discover.new_classes_page import (
    PACKAGE,
    QUALITY,
    SIDE,
    NewClassesHandler,
    NewClassesPage,
    NewClassesServer,
)
from latteclip.discover.proposal import (
    Action,
    State,
    parents,
    parse_actions,
    questions,
    replay,
)
from latteclip.report import render

log = logging.getLogger(__name__)
SURE = 3  # pictures of a leaf that are surely of it
DOUBTFUL = 2  # pictures of a leaf that are in doubt
QUESTIONS = 40  # that the page knows
OFFLINE_SIDE = 112  # pixels of a picture of the offline page
# Bytes before base64: of all pictures of the offline page, and of each at most and at least.
TOTAL_BYTES = 3_200_000
MAX_PICTURE = 9_000
MIN_PICTURE = 1_200
MAX_PICTURES = 1_600  # of the offline page
SAVED = "All is saved."
CONFLICT = "Another page has changed the classes; they are shown here now."


def classes(
    results: str,
    /,
    offline: str | None = None,
    actions: str | None = None,
    new: bool = False,
    add: str | None = None,
    port: int = 0,
    no_browser: bool = False,
) -> str | None:
    """Open a page to rename, merge, split and drop the proposed classes.

    What you do is saved in RESULTS/classes.json. Classes, labels, models and pages follow when you
    run the workflow again. If you named the classes yourself, the page proposes further classes
    from images that are marked unknown.

    Args:
        actions: import what the page exported, in place of what is saved
        new: list groups of images that are marked unknown, which may be further classes
        add: append a class to classes.txt
    """
    if new:
        return show_new_classes(results)
    if add is not None:
        return show_added_class(results, add)
    if not (offline or actions) and has_own_classes(results):
        show(NewClassesServer(NewClassesPage(results), port), SAVED, browser=not no_browser)
        return None
    page = ClassesPage(results)
    if offline:
        write_text(offline, page.offline_page())
        log.info(
            "Wrote %s. Open it in any browser, export there, and run %s.",
            offline,
            page.take,
        )
    elif actions:
        if not Path(actions).is_file():
            raise UserError(f"{actions} is no file; give what the page exported.")
        page.save(read_actions(actions, page.found), page.saved().revision)
        log.info("Took the actions of %s.", actions)
    else:
        show(ClassesServer(page, port), SAVED, browser=not no_browser)
        return page.result()
    return None


def has_own_classes(results: str | Path) -> bool:
    """Return whether a person listed the classes, and images are marked unknown."""
    folder = Path(results)
    is_proposed = (folder / PROPOSAL).is_file() and edited_classes(folder) is None
    return not is_proposed and (folder / "unknown.parquet").is_file()


class StaleActionsError(Exception):
    """Another page has saved other actions meanwhile."""


@dataclass(frozen=True)
class SavedActions:
    """What a person did so far."""

    actions: list[Action]
    revision: str  # a digest


class ClassesPage:
    """The proposed classes of a dataset, and what a person does to them."""

    def __init__(self, results: str | Path) -> None:
        """Read the proposal, or raise UserError."""
        self.folder = Path(results)
        self.dataset = self.folder.absolute().name
        self.path = self.folder / ACTIONS
        described = self.folder / PROPOSAL
        if not described.is_file():
            raise UserError(
                f"{described} does not exist: no stage has proposed classes. Run the workflow "
                f"with --config dataset={self.dataset} \"split={{'classes': 'discover'}}\" first."
            )
        if edited_classes(self.folder) is not None:
            raise UserError(
                f"{self.folder / CLASSES} was edited by hand and is used as it is. Go on there, or "
                "delete it and run the workflow: it returns to the proposal and your actions."
            )
        self.found = read_proposal(self.folder / LEAVES_FILE, self.folder / MEMBERS_FILE)
        index = str(self.folder / "unnamed_images.parquet")
        self.paths = tables.read_unlabelled(index, training=True)[0]["path"].to_pylist()
        self.pictures = self._pictures()  # rows of the leaves, the surest first
        self.sources = {row: f"image/{row}" for row in itertools.chain(*self.pictures)}
        self.served = {place: self.paths[row] for row, place in self.sources.items()}
        self.busy = threading.Lock()

    @cached_property
    def further(self) -> NewClassesPage:
        """Return the page of images that are marked unknown."""
        return NewClassesPage(self.folder)

    def _pictures(self) -> list[list[int]]:
        """Return the rows of the images that the page shows of each leaf."""
        leaves = self.found.proposal.leaves
        is_own = self.found.nearest == leaves[:, None]
        confidence = (self.found.probabilities * is_own).sum(axis=1)
        order = np.lexsort((-confidence, leaves))
        ends = np.cumsum(np.bincount(leaves))[:-1]
        shown = []
        for rows in np.split(order, ends):
            first_doubtful = max(SURE, len(rows) - DOUBTFUL)
            shown.append([*rows[:SURE].tolist(), *rows[first_doubtful:].tolist()])
        return shown

    @property
    def take(self) -> str:
        """Return the command that imports what the offline page exports."""
        return f"latteclip classes {shlex.quote(str(self.folder))} --actions classes.json"

    def saved(self) -> SavedActions:
        actions = read_actions(self.path, self.found)
        return SavedActions(actions, _revision(actions))

    def save(self, actions: Sequence[Action], revision: str) -> SavedActions:
        """Save actions. UserError: the classes do not allow one of them."""
        replay(self.found.proposal, actions)
        with self.busy:
            if self.saved().revision != revision:
                raise StaleActionsError
            write_actions(self.path, self.found, [*actions])
        return self.saved()

    def state(self, saved: SavedActions) -> dict[str, Any]:
        """Return what the page must know when it opens and after each action."""
        state = replay(self.found.proposal, saved.actions)
        return {
            "actions": [action.model_dump(exclude_none=True) for action in saved.actions],
            "revision": saved.revision,
            "questions": self._questions(state),
        }

    def _questions(self, state: State) -> list[dict[str, Any]]:
        rows = []
        for question in questions(self.found.proposal, state, QUESTIONS):
            leaves = [state.leaves[question.of]]
            if question.other is not None:
                leaves.append(state.leaves[question.other])
            rows.append({"do": question.do, "leaves": leaves})
        return rows

    def values(self, sources: Mapping[int, str]) -> dict[str, Any]:
        """Return the proposal for the page's script, with the addresses of pictures by row."""
        proposal = self.found.proposal
        leaves = []
        for leaf, size in enumerate(proposal.sizes.tolist()):
            pictures = self._shown(self.pictures[leaf], sources)
            terms = self.found.terms[leaf]
            leaves.append({"n": size, "terms": terms, "pictures": pictures})
        return {
            "dataset": self.dataset,
            "proposal": self.found.digest,
            "suggested": proposal.suggested,
            "by_looks": proposal.by_looks,
            "leaves": leaves,
            "tree": proposal.tree,
            "classes": proposal.classes,
            "names": proposal.first_names,
            "kinds": [*parents(proposal).items()],
            "again": run_command(self.folder),
            "marked": (self.folder / "unknown.parquet").is_file(),
        }

    def _shown(
        self, rows: Sequence[int], sources: Mapping[int, str]
    ) -> list[dict[str, Any]]:
        """Return the images of a leaf that have an address."""
        pictures = []
        for i, row in enumerate(rows):
            if row in sources:
                image = self.found.image_ids[row]
                pictures.append({"image": image, "source": sources[row], "sure": i < SURE})
        return pictures

    def page(self) -> tuple[str, str]:
        """Return the served page and its policy."""
        values = self.values(self.sources) | self.state(self.saved())
        return self._filled(SERVED, values)

    def offline_page(self) -> str:
        """Return a page that needs no server."""
        rows = list(itertools.chain(*self.pictures))
        if len(rows) > MAX_PICTURES:  # some of each leaf
            most = max(1, MAX_PICTURES // len(self.pictures))
            some = (leaf[:most] for leaf in self.pictures)
            rows = list(itertools.chain(*some))[:MAX_PICTURES]
        size = max(MIN_PICTURE, min(MAX_PICTURE, TOTAL_BYTES // max(1, len(rows))))
        sources = {row: data_uri(self.paths[row], OFFLINE_SIDE, size) for row in rows}
        sources = {row: uri for row, uri in sources.items() if uri}
        values = self.values(sources) | self.state(self.saved())
        html, _ = self._filled(OFFLINE, values | {"offline": True, "take": self.take})
        return html

    def _filled(self, sources: str, values: Mapping[str, Any]) -> tuple[str, str]:
        return render.fill(
            PACKAGE,
            "classes.html",
            ["common.js", "classes.js"],
            sources,
            dataset=self.dataset,
            values=values,
        )

    def result(self) -> str:
        """Return what follows from the saved actions."""
        actions = self.saved().actions
        state = replay(self.found.proposal, actions)
        return (
            f"Classes: {len(state.leaves)}. Your actions: {len(actions)}. Run the workflow again, "
            f"and classes.txt, labels, models and pages follow:\n  {run_command(self.folder)}"
        )


def _revision(actions: Sequence[Action]) -> str:
    text = json.dumps([action.model_dump(exclude_none=True) for action in actions])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ClassesHandler(NewClassesHandler):
    """One request of the page."""

    def _reply(self, path: str) -> Reply:
        page: ClassesPage = self.server.session
        if path == "new" or path.startswith("new/"):
            return self._reply_new(page.further, path)
        if self.command == "PUT" and path == "actions":
            return self._save_actions(page)
        if self.command == "GET" and path in page.served:  # no path comes from outside
            return served_picture(page.served[path], SIDE, QUALITY)
        if self.command == "PUT" or path:
            raise RefusedError(HTTPStatus.NOT_FOUND)
        html, self.policy = page.page()
        return HTTPStatus.OK, HTML, html.encode()

    def _save_actions(self, page: ClassesPage) -> Reply:
        actions = parse_actions(self._body(), "The request")
        revision = self.headers.get("If-Match", "").strip('"')
        try:
            values = page.state(page.save(actions, revision))
        except StaleActionsError:
            values = page.state(page.saved()) | {"message": CONFLICT}
            return HTTPStatus.PRECONDITION_FAILED, JSON, as_json(values)
        return HTTPStatus.OK, JSON, as_json(values)


class ClassesServer(QuestionServer):
    """Serves the page and saves the actions."""

    handler = ClassesHandler
