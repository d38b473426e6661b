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

# Images to ask about, the first one first, and images that a person answered.
Selection = tuple[list[int], list[int]]


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


def select(
    images_path: str,
    max_images: int | None,
    pseudo_labels_path: str | None = None,
    classifier_path: str | None = None,
    answers_path: str | None = None,
) -> Selection | None:
    """Return the `max_images` training images to ask about, None where that is None.

    Images with the least certain label by the classifier come first. Without a classifier, the
    order is random. Images that a person answered follow, about which no model is asked. Every
    shard reads the whole dataset, so that shards agree.
    """
    if max_images is None:
        return None
    from latteclip.labels.answers import UNSURE, teaching_schema

    table, classnames = tables.read_unlabelled(images_path, training=True)
    ids = table["image_id"]
    if classifier_path is None or pseudo_labels_path is None:
        names = ids.to_pylist()
        order = np.array(sorted(range(len(names)), key=lambda i: digest("ask", names[i])))
    else:
        from latteclip.clip.classifier import load_classifier

        classifier, _ = load_classifier(classifier_path, classnames=classnames)
        _, margins = best_classes(pseudo_labels_path, ids, classifier, 1)
        order = np.argsort(margins, kind="stable")
    is_answered = np.zeros(len(ids), bool)
    if answers_path is not None and Path(answers_path).is_file():
        saved = teaching_schema("the dataset", classnames, table).read(Path(answers_path))
        known = [one.image_id for one in saved.answers.values() if one.kind != UNSURE]
        is_answered |= pc.is_in(ids, pa.array(known, pa.string())).to_numpy()
    chosen = order[~is_answered[order]][:max_images]
    return chosen.tolist(), np.flatnonzero(is_answered).tolist()


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


@dataclass(frozen=True)
class Questions:
    """The R rows (images or groups) of a table, in columns: a million rows must fit."""

    ids: Sequence[str]  # R
    members: np.ndarray  # int [R, images of a request], indices into `image_ids`
    image_ids: pa.ChunkedArray  # ids of the N training images
    paths: pa.ChunkedArray  # N
    checksums: pa.ChunkedArray  # N, of the files
    classnames: Sequence[str]
    labels: Sequence[int] | None  # R, of groups
    prompts: Callable[[int], str]  # the prompt of a row
    layout: Layout
    order: Sequence[int]  # rows that get an answer, the first one first
    answered: Collection[int]  # rows that a person answered, of which no model is asked

    def __len__(self) -> int:
        return len(self.ids)

    def paths_of(self, row: int) -> list[str]:
        return [self.paths[int(i)].as_py() for i in self.members[row]]

    def content_of(self, row: int) -> str:
        """Return what the first image of a row is known by, wherever its file is moved."""
        image = int(self.members[row, 0])
        checksum = self.checksums[image].as_py()
        return (
            str(self.image_ids[image].as_py()) if checksum is None else str(checksum.hex())
        )


def questions_about(
    images_path: str,
    pseudo_labels_path: str | None,
    prompt: str,
    single: Layout,  # the layout of one image
    shard: str,
    groups: GroupsSection | None = None,
    selection: Selection | None = None,  # None: all are asked about
) -> Questions:
    """Return one question about each image, or each group, of a shard without the test split."""
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    labels: list[int] = []
    if groups or PLACE in prompt:
        if pseudo_labels_path is None:
            raise UserError(
                f"Prompt {prompt!r} names the pseudo-label; give --pseudo-labels."
            )
        labels = tables.lookup(
            pseudo_labels_path,
            tables.PSEUDO_LABELS,
            key="image_id",
            column="pseudo_label",
            ids=image_ids,
        )
    members = np.arange(len(image_ids))[:, None]
    if groups:  # drawn over the whole dataset in every shard, so that shards agree
        members = np.array(list(draw_groups(image_ids, labels, SEED).values()))
    number, of = map(int, shard.split("/"))
    rows = [i for i, name in enumerate(image_ids) if shard_of(name, of) == number]
    order: Sequence[int] = range(len(rows))
    answered: set[int] = set()
    if selection:
        row_of = {image: row for row, image in enumerate(rows)}
        chosen, known = (
            [row_of[image] for image in images if image in row_of] for images in selection
        )
        order, answered = [*chosen, *known], set(known)
    filled = [fill(prompt, classname) for classname in classnames]
    return Questions(
        ids=[image_ids[i] for i in rows],
        members=members[rows],
        image_ids=table["image_id"],
        paths=table["path"],
        checksums=table["checksum"],
        classnames=classnames,
        labels=[labels[i] for i in rows] if groups else None,
        prompts=lambda row: filled[labels[rows[row]]] if labels else prompt,
        layout=Layout(groups.canvas, square=single.square) if groups else single,
        order=order,
        answered=answered,
    )


def shard_of(row_id: str, of: int) -> int:
    """Return the shard of a row, from 1 to `of`, which does not depend on other rows."""
    return 1 + int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8]) % of
