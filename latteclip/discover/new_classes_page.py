"""The page of classes that nobody listed: groups of unknown images, taken over with a click."""

import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from latteclip.audit.server import (
    HTML,
    JSON,
    SERVED,
    Handler,
    QuestionServer,
    RefusedError,
    Reply,
    as_json,
    served_picture,
)
from latteclip.core import tables
from latteclip.core.errors import DELETE, UserError
from latteclip.core.files import read_object, write_json
from latteclip.core.folder_names import lines_of
from latteclip.core.run_options import run_command
from latteclip.discover.new_classes import (
    NewClass,
    change_list,
    list_of_classes,
    propose_new_classes,
)
from latteclip.discover.proposal import MAX_NAME
from latteclip.report import render

SIDE = 256  # pixels of a served picture
QUALITY = 85  # of its WebP
SHOWN = 12  # pictures of a group
PACKAGE = "latteclip.discover"
TAKEN = "new_classes.json"  # the name of each class that was taken over, by its first image


class Change(BaseModel, extra="forbid"):
    """A group that becomes a class of a name, or with None no longer is one."""

    group: int = Field(ge=0)
    name: str | None = Field(max_length=10 * MAX_NAME)


class NewClassesPage:
    """Groups of images that are marked unknown, and the list of classes."""

    def __init__(self, results: str | Path) -> None:
        """Group the images, or raise UserError."""
        self.folder = Path(results)
        self.dataset = self.folder.absolute().name
        self.groups: list[NewClass] = propose_new_classes(results)
        self.path = self.folder / TAKEN
        self.busy = threading.Lock()
        shown = []
        for group in self.groups:
            shown += group.image_ids[:SHOWN]
        index = str(self.folder / "images.parquet")
        paths = tables.lookup(index, tables.IMAGES, "image_id", "path", shown)
        self.paths = {f"new/image/{place}": path for place, path in enumerate(paths)}

    def taken(self) -> dict[str, str]:
        """Return the names of the groups that became classes, by the first image of each."""
        if not self.path.is_file():
            return {}
        taken: dict[str, str] = read_object(self.path, ("taken",), DELETE)["taken"]
        return taken

    def change(self, change: Change) -> None:
        """Add the class of a group, or remove it again. UserError: it cannot be."""
        if change.group >= len(self.groups):
            raise UserError(f"There is no group {change.group}; reload the page.")
        key = self.groups[change.group].image_ids[0]
        with self.busy:
            taken = self.taken()
            name = change_list(self.folder, change.name, taken.pop(key, None))
            if name is not None:
                taken[key] = name
            write_json(self.path, {"taken": taken})

    def state(self) -> dict[str, Any]:
        """Return what changes on the page."""
        taken = self.taken()
        return {
            "classes": lines_of(list_of_classes(self.folder)),
            "taken": [taken.get(group.image_ids[0]) for group in self.groups],
        }

    def page(self) -> tuple[str, str]:
        """Return the page and its policy."""
        groups = []
        sources = iter(self.paths)
        for group in self.groups:
            pictures = []
            for image in group.image_ids[:SHOWN]:
                pictures.append({"image": image, "source": next(sources)})
            n_images = len(group.image_ids)
            groups.append({"name": group.name or "", "n": n_images, "pictures": pictures})
        values = {"groups": groups, "again": run_command(self.folder), **self.state()}
        return render.fill(
            PACKAGE,
            "new_classes.html",
            ["common.js", "new_classes.js"],
            SERVED,
            dataset=self.dataset,
            values=values,
        )


class NewClassesHandler(Handler):
    """One request of the page."""

    def _reply(self, path: str) -> Reply:
        return self._reply_new(self.server.session, path or "new")

    def _reply_new(self, page: NewClassesPage, path: str) -> Reply:
        if self.command == "PUT" and path == "new/classes":
            page.change(_parsed(self._body()))
            return HTTPStatus.OK, JSON, as_json(page.state())
        if self.command == "GET" and path in page.paths:  # no path comes from outside
            return served_picture(page.paths[path], SIDE, QUALITY)
        if self.command == "PUT" or path != "new":
            raise RefusedError(HTTPStatus.NOT_FOUND)
        html, self.policy = page.page()
        return HTTPStatus.OK, HTML, html.encode()


def _parsed(content: bytes) -> Change:
    try:
        return Change.model_validate_json(content)
    except ValidationError as error:
        first = str(error).splitlines()[0][:200]
        raise UserError(f"The request holds no change of a class ({first}).") from None


class NewClassesServer(QuestionServer):
    """Serves the page and writes the list of classes."""

    handler = NewClassesHandler
