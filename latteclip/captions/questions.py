"""Questions about images and groups of images: which are asked, in which order, and requests.

Imports no torch at its beginning: worker processes start in a fraction of a second.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip.captions.groups import SEED, draw_groups
from latteclip.captions.pictures import Layout
from latteclip.config.keys import GroupsSection
from latteclip.core import tables
from latteclip.core.class_templates import PLACE, fill
from latteclip.core.errors import UserError
from latteclip.core.files import digest

if TYPE_CHECKING:
    from latteclip.clip.classifier import Classifier


@dataclass(frozen=True)
class Choices:
    """Texts whose log-probabilities are wanted, in place of an answer in words."""

    # Likelihood: of each text as the answer; multiple_choice: of each as the first token;
    # decisions: of each as the option of a typed question.
    kind: str
    texts: tuple[str, ...]
    # One for each order of the options: prompts of multiple_choice, and of decisions the questions
    # in JSON.
    prompts: tuple[str, ...] = ()

    @property
    def by_letters(self) -> bool:
        return self.kind == "multiple_choice"


@dataclass(frozen=True)
class Request:
    """Pictures and a prompt about them."""

    key: int  # the row
    pictures: Sequence[Image.Image | str]  # RGB, or data URLs for a server
    prompt: str  # the prompt of this attempt
    choices: Choices | None = None  # None: an answer in words is wanted
    paths: Sequence[str] = ()  # paths of the images, until their pictures are made
    digest: str = ""  # key of its cached answer
    is_asked: bool = True  # False: an answer counts only if it is in the cache


@dataclass(frozen=True)
class Files:
    """Files of the dataset that questions are made of."""

    images: str
    pseudo_labels: str | None
    classifier: str | None = None  # decides which images come first
    answers: str | None = None  # a person's answers


@dataclass(frozen=True)
class Questions:
    """The R rows (images or groups) of a table, in columns: a million rows must fit."""

    ids: Sequence[str]  # R
    members: np.ndarray  # int [R, images of a request], indices of images
    images: pa.Table  # the index of the N training images
    classnames: Sequence[str]
    labels: Sequence[int] | None  # R, of groups
    prompts: Callable[[int], str]  # the prompt of a row
    layout: Layout
    order: Sequence[int]  # rows that get an answer, the first one first
    answered: Collection[int]  # rows that a person answered, of which no model is asked

    def __len__(self) -> int:
        return len(self.ids)

    def member_ids(self, row: int) -> list[str]:
        """Return the image_ids in the picture of a row."""
        return [self.images["image_id"][int(i)].as_py() for i in self.members[row]]

    def paths_of(self, row: int) -> list[str]:
        return [self.images["path"][int(i)].as_py() for i in self.members[row]]

    def content_of(self, row: int) -> str:
        """Return what the first image of a row is known by, wherever its file is moved."""
        checksum = self.images["checksum"][int(self.members[row, 0])].as_py()
        return self.member_ids(row)[0] if checksum is None else str(checksum.hex())


def questions_about(
    files: Files,
    prompt: str,
    layout: Layout,  # the layout of one image
    shard: str,
    groups: GroupsSection | None = None,
    max_images: int | None = None,  # None: all are asked about
) -> Questions:
    """Return one question about each image, or each group, of a shard without the test split."""
    table, classnames = tables.read_unlabelled(files.images, training=True)
    image_ids = table["image_id"].to_pylist()
    labels: list[int] = []
    if groups or PLACE in prompt:
        if files.pseudo_labels is None:
            raise UserError(
                f"Prompt {prompt!r} names the pseudo-label; give --pseudo-labels."
            )
        schema = tables.PSEUDO_LABELS
        labels = tables.lookup(
            files.pseudo_labels, schema, "image_id", "pseudo_label", image_ids
        )
    members = np.arange(len(image_ids))[:, None]
    if groups:  # drawn over the whole dataset in every shard, so that shards agree
        members = np.array(list(draw_groups(image_ids, labels, SEED).values()))
        layout = Layout(groups.canvas, square=layout.square)
    number, of = map(int, shard.split("/"))
    rows = [i for i, name in enumerate(image_ids) if shard_of(name, of) == number]
    order: Sequence[int] = range(len(rows))
    answered: set[int] = set()
    if max_images is not None:
        row_of = {image: row for row, image in enumerate(rows)}
        is_answered = _is_answered(files, table, classnames)
        chosen = _by_doubt(files, table, classnames)
        chosen = chosen[~is_answered[chosen]][:max_images]
        first, last = (
            [row_of[image] for image in images if image in row_of]
            for images in (chosen, np.flatnonzero(is_answered))
        )
        order, answered = [*first, *last], set(last)
    filled = [fill(prompt, classname) for classname in classnames]
    return Questions(
        ids=[image_ids[i] for i in rows],
        members=members[rows],
        images=table,
        classnames=classnames,
        labels=[labels[i] for i in rows] if groups else None,
        prompts=lambda row: filled[labels[rows[row]]] if labels else prompt,
        layout=layout,
        order=order,
        answered=answered,
    )


def _by_doubt(files: Files, table: pa.Table, classnames: Sequence[str]) -> np.ndarray:
    """Return the N images, those with the least certain label by the classifier first.

    Without a classifier, the order is random. Every shard orders the whole dataset, so that shards
    agree.
    """
    ids = table["image_id"]
    if files.classifier is None or files.pseudo_labels is None:
        keys = [digest("ask", name) for name in ids.to_pylist()]
        return np.argsort(keys)
    from latteclip.clip.classifier import load_classifier

    classifier, _ = load_classifier(files.classifier, classnames=classnames)
    _, margins = best_classes(files.pseudo_labels, ids, classifier, 1)
    return np.argsort(margins, kind="stable")


def _is_answered(files: Files, table: pa.Table, classnames: Sequence[str]) -> np.ndarray:
    """Return which of the N images a person answered: bool [N]."""
    if files.answers is None or not Path(files.answers).is_file():
        return np.zeros(len(table), bool)
    from latteclip.labels.answers import UNSURE, teaching_schema

    saved = teaching_schema("the dataset", classnames, table).read(Path(files.answers))
    known = [one.image_id for one in saved.answers.values() if one.kind != UNSURE]
    found: np.ndarray = pc.is_in(table["image_id"], pa.array(known, pa.string())).to_numpy()
    return found


def best_classes(
    pseudo_labels_path: str, image_ids: pa.ChunkedArray, classifier: "Classifier", k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the K best classes int32 [N, K] of N images, and how much better the first is [N]."""
    import torch

    from latteclip.clip.classifier import ROWS, classify

    ids = []
    classes = []
    margins = []
    columns = ["image_id", "image_features"]
    for piece in tables.read_pieces(
        pseudo_labels_path, tables.PSEUDO_LABELS, columns, ROWS
    ):
        features = torch.from_numpy(tables.from_list_column(piece["image_features"]).copy())
        best, scores = classify(features, classifier, max(k, 2))
        ids += piece["image_id"].chunks
        classes.append(best[:, :k].int().numpy())
        margins.append((scores[:, 0] - scores[:, 1]).numpy())
    rows = tables.find_rows(image_ids, pa.chunked_array(ids), pseudo_labels_path)
    return np.concatenate(classes)[rows], np.concatenate(margins)[rows]


def shard_of(row_id: str, of: int) -> int:
    """Return the shard of a row, from 1 to `of`, which does not depend on other rows."""
    return 1 + int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8]) % of
