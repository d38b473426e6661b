"""Questions about images and groups: which are asked, in which order, and what a request shows.

Imports no torch at its beginning: worker processes start in a fraction of a second.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip.core import tables
from latteclip.core.answers import UNSURE, AnswerFile
from latteclip.core.class_templates import PLACE, fill
from latteclip.core.errors import UserError
from latteclip.core.files import digest
from latteclip.data.images import open_rgb

GROUP_SIZE = 4
SEED = 0  # of the groups
GAP = 20 / 672  # between the cells of a grid, of its side: as in the paper's code


@dataclass(frozen=True)
class Choices:
    """Texts whose log-probabilities are wanted, in place of an answer in words."""

    texts: tuple[str, ...]
    # One for each order of the options: prompts of multiple_choice, and of decisions the questions
    # in JSON. Empty where each text is an answer, as of likelihood.
    prompts: tuple[str, ...] = ()
    # Whether the texts are the first tokens of answers, as of multiple_choice.
    by_letters: bool = False


@dataclass(frozen=True)
class Request:
    """Pictures and a prompt about them."""

    key: int  # the row
    pictures: Sequence[Image.Image]  # RGB
    prompt: str
    choices: Choices | None = None  # None: an answer in words is wanted
    # Of the image files, of which the pictures are made.
    paths: Sequence[str] = ()
    checksums: Sequence[bytes] = ()


@dataclass(frozen=True)
class Layout:
    """How the images of a request become the pictures that the model sees."""

    # Side of the square picture of several images, pixels.
    canvas: int | None = None
    # A larger image is scaled down to this many pixels.
    max_side: int | None = None
    # Then each picture is scaled to a square of this side, pixels.
    square: int | None = None

    def with_pictures(self, request: Request) -> Request:
        """Give a request its pictures. UserError: an image is not as the index has it.

        Worker processes read and decode the images ahead of the engine.
        """
        pairs = zip(request.paths, request.checksums, strict=True)
        images = [
            open_rgb(path, wanted=checksum, max_side=self.max_side)
            for path, checksum in pairs
        ]
        return replace(request, pictures=self.pictures(images))

    def pictures(self, images: list[Image.Image]) -> list[Image.Image]:
        """Return the RGB pictures that the model sees of RGB images."""
        if self.canvas:
            images = [grid(images, self.canvas)]
        if self.square is None:
            return images
        # Whatever the shape (bicubic), as LLaVA-1.6 does for its overview.
        size = (self.square, self.square)
        return [image.resize(size, Image.Resampling.BICUBIC) for image in images]


class Questions:
    """A question about each image, or each group, of a shard without the test split.

    There are R rows, in columns: a million rows must fit.
    """

    scoring = False  # whether requests have choices

    def __init__(
        self,
        images_path: str,
        pseudo_labels_path: str | None,
        prompt: str,  # {} is the pseudo-label
        layout: Layout,  # with a canvas, questions are about groups
        shard: str,
        *,
        max_images: int | None,  # None: all are asked about
        classifier_path: str | None,  # decides which images come first
        answers_path: str | None,  # a person's answers
    ) -> None:
        self.prompt, self.layout, self.shard = prompt, layout, shard
        # The index of the N training images.
        self.images, self.classnames = tables.read_unlabelled(
            images_path, training=True
        )
        image_ids = self.images["image_id"].to_pylist()
        # N pseudo-labels; empty where the prompt names none.
        self.labels = list[int]()
        if layout.canvas or PLACE in prompt:
            if pseudo_labels_path is None:
                raise UserError(
                    f"Prompt {prompt!r} names the pseudo-label; give --pseudo-labels."
                )
            self.labels = tables.lookup_column(
                pseudo_labels_path, "pseudo_label", self.images["image_id"]
            ).to_pylist()
        members = np.arange(len(image_ids))[:, None]
        # Drawn, and ordered, over the whole dataset in every shard, so that shards agree.
        if layout.canvas:
            members = draw_groups(image_ids, self.labels)
        number, of = map(int, shard.split("/"))
        # The image that a row is about or was drawn for, and those of its request: int [R, n].
        self.rows = np.flatnonzero(
            [shard_of(name, of) == number for name in image_ids]
        )
        self.members = members[self.rows]
        # Rows to ask about, the first one first.
        self.order: Sequence[int] = range(len(self.rows))
        # Rows that get an answer: those, and what a person answered if a model did before.
        self.wanted: Collection[int] = self.order
        if max_images is not None:
            is_answered = self._answered(answers_path)
            chosen = self._by_doubt(pseudo_labels_path, classifier_path)
            chosen = chosen[~is_answered[chosen]][:max_images]
            chosen = chosen[np.isin(chosen, self.rows)]
            self.order = np.searchsorted(self.rows, chosen).tolist()
            self.wanted = {
                *self.order,
                *np.flatnonzero(is_answered[self.rows]).tolist(),
            }

    def __len__(self) -> int:
        return len(self.rows)

    def id_of(self, row: int) -> str:
        return str(self.images["image_id"][int(self.rows[row])].as_py())

    def prompt_of(self, row: int) -> str:
        if not self.labels:
            return self.prompt
        return fill(self.prompt, self.classnames[self.labels[self.rows[row]]])

    def request(self, row: int, *, again: bool) -> Request:
        """Return the request about a row, or that after an answer that was empty or cut."""
        raise NotImplementedError

    def columns(self, row: int, answer: Any) -> dict[str, Any]:
        """Return the columns of the table of answers; `answer` is None where none was wanted."""
        raise NotImplementedError

    def about(
        self, row: int, prompt: str, choices: Choices | None = None
    ) -> Request:
        """Return a request about the images of a row, without its pictures."""
        paths, checksums = (
            self.of_members(row, name) for name in ("path", "checksum")
        )
        return Request(row, (), prompt, choices, paths, checksums)

    def of_members(self, row: int, column: str) -> list[Any]:
        """Return a column of the index for the images of a row."""
        return [
            self.images[column][int(image)].as_py() for image in self.members[row]
        ]

    def _by_doubt(
        self, pseudo_labels_path: str | None, classifier_path: str | None
    ) -> np.ndarray:
        """Return the N images, those with the least certain label by the classifier first.

        Without a classifier, the order is random.
        """
        ids = self.images["image_id"]
        if classifier_path is None or pseudo_labels_path is None:
            return np.argsort([digest("ask", name) for name in ids.to_pylist()])
        from latteclip.clip.classifier import load_classifier
        from latteclip.clip.features import classify_table

        classifier, _ = load_classifier(classifier_path)
        _, margins = classify_table(pseudo_labels_path, ids, classifier, 1)
        return np.argsort(margins, kind="stable")

    def _answered(self, answers_path: str | None) -> np.ndarray:
        """Return which of the N images a person answered: bool [N]."""
        if answers_path is None:
            return np.zeros(len(self.images), bool)
        saved = AnswerFile(Path(answers_path), self.images, self.classnames).read()
        known = [
            one.image_id for one in saved.answers.values() if one.kind != UNSURE
        ]
        found: np.ndarray = pc.is_in(
            self.images["image_id"], pa.array(known, pa.string())
        ).to_numpy()
        return found


def shard_of(row_id: str, of: int) -> int:
    """Return the shard of a row, from 1 to `of`, which does not depend on other rows."""
    return 1 + int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8]) % of


def draw_groups(image_ids: Sequence[str], labels: Sequence[int]) -> np.ndarray:
    """Draw four images of its class for every image, at random (LatteCLIP, section 3.2).

    There are four random circular orders of the class's n images. Each of the four drawn images is
    the next one in one of these orders. So every image is drawn about four times. An image that is
    added to the class later changes only the few groups in which it takes its place. Of fewer than
    four images, members are drawn with replacement. Returns the indices of the members, [N, 4].
    """
    keys = np.array([_keys(image_id) for image_id in image_ids])  # [N, 4]
    groups = np.empty_like(keys)
    classes = np.array(labels)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        groups[members] = members[_of_class(keys[members])]
    return groups


def _keys(image_id: str) -> list[int]:
    """Return four random numbers that depend on nothing but the arguments."""
    state = hashlib.sha256(f"{SEED} {image_id}".encode()).digest()
    return [
        int.from_bytes(state[6 * turn : 6 * turn + 6])
        for turn in range(GROUP_SIZE)
    ]


def _of_class(keys: np.ndarray) -> np.ndarray:
    """Return four images for each of n: int [n, 4]. Column k of the keys sorts the k-th order."""
    n = len(keys)
    if n < GROUP_SIZE:
        return keys % n
    # [n, 4]: the image at each place.
    orders = np.argsort(keys, axis=0, kind="stable")
    places = np.argsort(orders, axis=0)  # [n, 4]: the place of each image
    groups = np.empty((n, GROUP_SIZE), np.int64)
    for turn in range(GROUP_SIZE):
        step = np.ones(n, np.int64)
        for _ in range(turn + 1):  # until the image is none of the earlier ones
            drawn = orders[(places[:, turn] + step) % n, turn]
            step += (groups[:, :turn] == drawn[:, None]).any(axis=1)
        groups[:, turn] = drawn
    return groups


def grid(pictures: Sequence[Image.Image], canvas: int) -> Image.Image:
    """Lay four RGB pictures out in a 2x2 grid on a black square (LatteCLIP, section 3.2).

    Each is scaled to fit its cell without distortion (Lanczos) and centred in it. `canvas` is the
    side of the square in pixels.
    """
    gap = round(canvas * GAP)
    cell = (canvas - gap) // 2
    step = cell + gap
    square = Image.new("RGB", (canvas, canvas))
    for position, picture in enumerate(pictures):
        row, column = divmod(position, 2)
        scale = min(cell / picture.width, cell / picture.height)
        width = max(1, round(picture.width * scale))
        height = max(1, round(picture.height * scale))
        scaled = picture.resize((width, height), Image.Resampling.LANCZOS)
        left = column * step + (cell - width) // 2
        top = row * step + (cell - height) // 2
        square.paste(scaled, (left, top))
    return square
