"""`latteclip classes`: a page on which a person corrects the proposed classes."""

import hashlib
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

from latteclip.audit.server import (
    JSON,
    SERVED,
    QuestionServer,
    RefusedError,
    Reply,
    served_picture,
    show,
)
from latteclip.core import tables
from latteclip.core.class_history import ACTIONS, PROPOSAL, edited_classes
from latteclip.core.errors import UserError
from latteclip.core.files import write_text
from latteclip.core.folder_names import CLASSES
from latteclip.core.run_options import run_command
from latteclip.data.images import open_rgb
from latteclip.discover.inputs import (
    LEAVES_FILE,
    MEMBERS_FILE,
    read_actions,
    read_proposal,
    write_actions,
)
from latteclip.discover.new_classes import show_added_class, show_new_classes
from latteclip.discover.new_classes_page import (
    PACKAGES,
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
from latteclip.report.gallery import picture

log = logging.getLogger(__name__)
SURE, DOUBTFUL = 3, 2  # pictures of a leaf
QUESTIONS = 40  # that the page knows
OFFLINE, OFFLINE_SIDE = "img-src data:", 112
OFFLINE_BYTES, MIN_PICTURE, MAX_PICTURE = 3_200_000, 1_200, 9_000  # before base64
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
        rows = (row for leaf in self.pictures for row in leaf)
        self.served = {f"image/{row}": self.paths[row] for row in rows}
        self.busy = threading.Lock()

    @cached_property
    def further(self) -> NewClassesPage:
        """Return the page of images that are marked unknown."""
        return NewClassesPage(self.folder)

    def _pictures(self) -> list[list[int]]:
        leaves = self.found.proposal.leaves
        is_own = self.found.nearest == leaves[:, None]
        confidence = (self.found.probabilities * is_own).sum(axis=1)
        order = np.lexsort((-confidence, leaves))
        ends = np.cumsum(np.bincount(leaves))[:-1]
        rows = (part.tolist() for part in np.split(order, ends))
        return [[*one[:SURE], *one[max(SURE, len(one) - DOUBTFUL) :]] for one in rows]

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
        asked = questions(self.found.proposal, state, QUESTIONS)
        pairs = (
            (one, [one.of] if one.other is None else [one.of, one.other]) for one in asked
        )
        return [
            {"do": one.do, "leaves": [state.leaves[k] for k in pair]} for one, pair in pairs
        ]

    def values(self, sources: Mapping[int, str]) -> dict[str, Any]:
        """Return the proposal for the page's script, with the addresses of pictures by row."""
        proposal = self.found.proposal
        leaves = [
            {
                "n": int(size),
                "terms": self.found.terms[leaf],
                "pictures": [
                    {
                        "image": self.found.image_ids[row],
                        "source": sources[row],
                        "sure": i < SURE,
                    }
                    for i, row in enumerate(self.pictures[leaf])
                    if row in sources
                ],
            }
            for leaf, size in enumerate(proposal.sizes)
        ]
        names = {k: one[0] for k, one in enumerate(proposal.names)}
        return {
            "dataset": self.dataset,
            "proposal": self.found.digest,
            "suggested": proposal.suggested,
            "by_looks": proposal.by_looks,
            "leaves": leaves,
            "tree": proposal.tree,
            "classes": proposal.classes,
            "names": [names[k] for k in sorted(names)],
            "kinds": [[k, above] for k, above in parents(proposal).items()],
            "again": run_command(self.folder),
            "marked": (self.folder / "unknown.parquet").is_file(),
        }

    def page(self) -> tuple[str, str]:
        """Return the served page and its policy."""
        rows = (row for one in self.pictures for row in one)
        values = self.values({row: f"image/{row}" for row in rows})
        return self._filled(SERVED, {**values, **self.state(self.saved())})

    def offline_page(self) -> str:
        """Return a page that needs no server."""
        rows = [row for one in self.pictures for row in one]
        if len(rows) > MAX_PICTURES:  # some of each leaf
            most = max(1, MAX_PICTURES // len(self.pictures))
            rows = [row for one in self.pictures for row in one[:most]][:MAX_PICTURES]
        size = max(MIN_PICTURE, min(MAX_PICTURE, OFFLINE_BYTES // max(1, len(rows))))
        sources = {row: uri for row in rows if (uri := self._data_uri(row, size))}
        own = {"offline": True, "take": self.take, **self.state(self.saved())}
        return self._filled(OFFLINE, {**self.values(sources), **own})[0]

    def _filled(self, sources: str, values: Mapping[str, Any]) -> tuple[str, str]:
        return render.fill(
            PACKAGES,
            "classes.html",
            "classes.js",
            sources,
            dataset=self.dataset,
            values=values,
        )

    def _data_uri(self, row: int, max_bytes: int) -> str:
        try:
            image = open_rgb(self.paths[row], max_side=OFFLINE_SIDE)
        except UserError as error:
            log.warning("%s It has no picture on the page.", error)
            return ""
        return picture(image, OFFLINE_SIDE, max_bytes).uri

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
        return HTTPStatus.OK, "text/html; charset=utf-8", html.encode()

    def _save_actions(self, page: ClassesPage) -> Reply:
        actions = parse_actions(self._body(), "The request")
        revision, status = self.headers.get("If-Match", "").strip('"'), HTTPStatus.OK
        values: dict[str, Any] = {}
        try:
            saved = page.save(actions, revision)
        except StaleActionsError:
            saved, status = page.saved(), HTTPStatus.PRECONDITION_FAILED
            values["message"] = CONFLICT
        return status, JSON, json.dumps({**page.state(saved), **values}).encode()


class ClassesServer(QuestionServer):
    """Serves the page and saves the actions."""

    handler = ClassesHandler
