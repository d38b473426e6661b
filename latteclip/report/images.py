"""Pictures of a dataset's page, with their captions, predictions and near-duplicates.

Pictures are small WebP files as data URIs. However many images and classes there are, the gallery
takes at most 1.9 MB as text, and the other pictures 1.5 MB. Captions are read in pieces, of which
little stays in memory: there may be millions.

Letters: S seeds, N test images, P pairs.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip.captions.pictures import grid
from latteclip.captions.text import mentions
from latteclip.core import tables
from latteclip.data.images import open_rgb
from latteclip.report import comparison
from latteclip.report.comparison import MethodPredictions, Row
from latteclip.report.runs import PIECE, RunFiles, Split, read_labels

QUALITIES = (80, 60, 40, 20)
# Sides in pixels, and bytes before base64.
PICTURE, PICTURE_BYTES = 320, 30_000  # of the gallery
GRID, GRID_BYTES = 448, 60_000
DISPUTE, DISPUTE_BYTES = 240, 9_000
THUMBNAIL, THUMBNAIL_BYTES = 112, 3_500
TWIN, TWIN_BYTES = 168, 8_000
# Numbers of pictures.
EXAMPLES, DISPUTES, UNKNOWN, PAIRS = 6, 12, 24, 6
ENDS, OF_CLASS = 240, 3  # surest and least sure: in all, and of a class at each end

# --- pictures ------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A picture as an <img> wants it."""

    uri: str
    width: int
    height: int


def picture(image: Image.Image, side: int, max_bytes: int) -> Picture:
    """Encode an RGB picture, its longer side at most `side` pixels, in at most `max_bytes`.

    The bytes are those before base64. Quality is lowered first, then the size is halved.
    """
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    while True:
        for quality in QUALITIES:
            file = io.BytesIO()
            small.save(file, "WEBP", quality=quality, method=4)
            if file.tell() <= max_bytes or max(small.size) <= 16:
                encoded = base64.b64encode(file.getvalue()).decode()
                return Picture(f"data:image/webp;base64,{encoded}", small.width, small.height)
        small = small.resize((max(1, small.width // 2), max(1, small.height // 2)))


def picture_of(path: str, side: int, max_bytes: int) -> Picture:
    """Encode the picture of an image file.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    return picture(open_rgb(path, max_side=side), side, max_bytes)


# --- captions ------------------------------------------------------------------------------------


class ClassMentionCounter:
    """Counts the texts that hold the name of their class."""

    def __init__(self, classnames: Sequence[str]):
        self.texts = self.hits = 0
        self._holds = cache(lambda label: mentions([classnames[label]]))

    def add(self, texts: Sequence[str], labels: Sequence[int]) -> None:
        """Count texts that are not empty."""
        for text, label in zip(texts, labels, strict=True):
            if text:
                self.texts += 1
                self.hits += self._holds(label)(text)

    @property
    def share(self) -> float | None:
        """Return a percentage; None where there was no text."""
        return 100 * self.hits / self.texts if self.texts else None


class Group(NamedTuple):
    """A group of training images and its caption."""

    members: list[str]
    caption: str


@dataclass(frozen=True)
class Captions:
    """The captions of one kind, as far as the page needs them."""

    metadata: dict[str, Any]
    naming_pseudo_label: float | None  # share of the texts, in percent
    naming_label: float | None
    texts: dict[int, str] = field(default_factory=dict)  # of the page's images, by their number
    groups: dict[int, Group] = field(default_factory=dict)


def read_image_captions(
    path: str, train: Split, chosen: Sequence[int], classnames: Sequence[str]
) -> Captions:
    """Read the captions of the chosen training images."""
    ids, metadata = tables.read(path, tables.CAPTIONS, ["id"])
    rows = train.places(ids["id"])
    by_pseudo_label, by_label = ClassMentionCounter(classnames), ClassMentionCounter(classnames)
    wanted, start = set(chosen), 0
    texts: dict[int, str] = {}
    for piece in tables.read_pieces(path, tables.CAPTIONS, ["caption"], PIECE):
        captions = piece["caption"].to_pylist()
        here = rows[start : start + len(captions)]
        start += len(captions)
        by_pseudo_label.add(captions, train.pseudo_labels[here].tolist())
        if train.labels is not None:
            by_label.add(captions, train.labels[here].tolist())
        texts |= {i: text for i, text in zip(here.tolist(), captions, strict=True) if i in wanted}
    return Captions(metadata, by_pseudo_label.share, by_label.share, texts=texts)


def read_group_captions(
    path: str, train: Split, chosen: Sequence[int], classnames: Sequence[str]
) -> Captions:
    """Read a group of its pseudo-label for each chosen image, if possible one that holds it."""
    metadata = tables.read_metadata(path, "id")
    naming = ClassMentionCounter(classnames)
    label_of = {train.image_id(i): int(train.pseudo_labels[i]) for i in chosen}
    labels = pa.array(sorted(set(label_of.values())), pa.int32())
    first: dict[int, Group] = {}
    holding: dict[str, Group] = {}
    columns = ["members", "caption", "pseudo_label"]
    for piece in tables.read_pieces(path, tables.CAPTIONS, columns, PIECE):
        filled = pc.fill_null(piece["pseudo_label"], 0).to_pylist()
        naming.add(piece["caption"].to_pylist(), filled)
        for row in piece.filter(pc.is_in(piece["pseudo_label"], labels)).to_pylist():
            group, label = Group(row["members"], row["caption"]), row["pseudo_label"]
            first.setdefault(label, group)
            for name in group.members:
                if label_of.get(name) == label:
                    holding.setdefault(name, group)
    found = {
        i: holding.get(train.image_id(i)) or first.get(int(train.pseudo_labels[i])) for i in chosen
    }
    groups = {i: group for i, group in found.items() if group}
    return Captions(metadata, naming.share, None, groups=groups)


def caption_statistics(summary: dict[str, Any], captions: Captions, n_frequent: int = 5) -> Row:
    """Return captions of one kind in numbers, shares in percent.

    Args:
        summary: of this kind in captions/summary.json.
        captions: of this kind.
        n_frequent: how many of the most frequent texts are returned.
    """
    repeated = summary["most_repeated"][:n_frequent]
    return {
        **{key: summary[key] for key in ("captions", "failed", "empty", "distinct")},
        "cut": 100 * summary["cut"] / max(1, summary["captions"]),  # at the token limit
        "words": summary["words"].get("mean"),
        "tokens": summary["tokens"].get("mean"),
        "names_class": 100 * summary["share_naming_a_class"],
        "names_pseudo_label": captions.naming_pseudo_label,
        "names_label": captions.naming_label,
        "frequent": [(row["caption"], row["times"]) for row in repeated],
    }


# --- images of a page ----------------------------------------------------------------------------


def gallery(
    chosen: Sequence[int],
    train: Split,
    predictions: Sequence[int] | None,
    image_captions: Captions | None,
    group_captions: Captions | None,
) -> list[Row]:
    """Return the chosen training images with their captions and a group of their pseudo-label.

    The predictions are those of the page's model for them.
    """
    rows = []
    for place, i in enumerate(chosen):
        group = group_captions.groups.get(i) if group_captions else None
        layout = group_captions.metadata["groups"] if group_captions else {}
        rows.append(
            {
                "image_id": train.image_id(i),
                "picture": picture_of(train.path(i), PICTURE, PICTURE_BYTES),
                "confidence": float(train.confidence[i]),
                "pseudo_label": int(train.pseudo_labels[i]),
                "prediction": None if predictions is None else predictions[place],
                "label": None if train.labels is None else int(train.labels[i]),
                "image_caption": image_captions.texts.get(i) if image_captions else None,
                "group": _group_picture(group, train, layout) if group else None,
                "group_caption": group.caption if group else None,
            }
        )
    return rows


def _group_picture(group: Group, train: Split, layout: dict[str, Any]) -> Picture:
    """Encode the grid of a group: the captioner's picture or, with separate images, all of them."""
    rows = train.places(pa.array(group.members, pa.string()))
    side = layout["canvas"]
    members = [open_rgb(train.path(i), max_side=side) for i in rows.tolist()]
    return picture(grid(members, side, layout["gap"]), GRID, GRID_BYTES)


def changed_examples(split: Split, found: MethodPredictions, *, improved: bool) -> list[Row]:
    """Return images whose prediction changed from wrong to right, or from right to wrong."""
    labels, before, after = split.labels, split.pseudo_labels, found.after
    assert labels is not None
    margins = found.of_main.margins
    chosen = comparison.changed_images(
        labels, before, after, margins, improved=improved, n=EXAMPLES
    )
    return [
        {
            "image_id": split.image_id(i),
            "picture": picture_of(split.path(i), PICTURE, PICTURE_BYTES),
            "label": int(labels[i]),
            "before": int(before[i]),
            "after": int(after[i]),
        }
        for i in chosen
    ]


def disputes(found: MethodPredictions, split: Split) -> list[Row]:
    """Return the images about which the methods differ most, with the methods of each class."""
    return [
        {
            "image_id": split.image_id(i),
            "picture": picture_of(split.path(i), DISPUTE, DISPUTE_BYTES),
            "sides": comparison.sides(found, i),
        }
        for i in comparison.disputed(found, DISPUTES)
    ]


def class_panels(found: MethodPredictions, split: Split) -> list[Row]:
    """Return the surest and the least sure images of each class, as far as there is room."""

    def thumbnails(rows: Sequence[int]) -> list[Row]:
        second = found.of_main.runner_up
        return [_thumbnail(split, i, int(found.after[i]), int(second[i])) for i in rows]

    return [
        row | {end: thumbnails(row[end]) for end in ("surest", "least")}
        for row in comparison.ends_of_classes(found, ENDS, OF_CLASS)
    ]


def _thumbnail(
    split: Split, i: int, prediction: int, second: int | None, score: float | None = None
) -> Row:
    """Return a small picture with the prediction, and the second best class or a score."""
    return {
        "image_id": split.image_id(i),
        "picture": picture_of(split.path(i), THUMBNAIL, THUMBNAIL_BYTES),
        "label": None if split.labels is None else int(split.labels[i]),
        "prediction": prediction,
        "second": second,
        "score": score,
    }


def read_unknown(path: str, splits: Sequence[Split]) -> Row:
    """Return the images that most likely show none of the classes, the likeliest first.

    Images with a score of the captioner come first.

    Args:
        path: an UNKNOWN table.
        splits: in one of which each image is.
    """
    marked, scores = 0, [np.empty((2, 0))]
    names = ["score", "captioner_score"]
    for piece in tables.read_pieces(path, tables.UNKNOWN, [*names, "is_unknown"], PIECE):
        marked += int(pc.sum(piece["is_unknown"]).as_py() or 0)
        scores.append(np.stack([piece[name].to_numpy() for name in names]))
    by_clip, by_captioner = np.concatenate(scores, axis=1)
    best = np.lexsort((-by_clip, -by_captioner))[:UNKNOWN]  # NaN, no score, comes last
    table, _ = tables.read(path, tables.UNKNOWN, ["image_id"])
    ids = table["image_id"].take(best)
    places = [split.places(ids) for split in splits]
    likeliest = []
    for number, score in enumerate(by_clip[best].tolist()):
        split, i = next(
            (split, int(rows[number]))
            for split, rows in zip(splits, places, strict=True)
            if rows[number] >= 0
        )
        likeliest.append(_thumbnail(split, i, int(split.pseudo_labels[i]), None, score))
    scored = int((~np.isnan(by_captioner)).sum())
    return {"marked": marked, "images": len(by_clip), "scored": scored, "likeliest": likeliest}


# --- near-duplicates -----------------------------------------------------------------------------


def read_duplicates(path: str, train: Split, test: Split, run_files: Sequence[RunFiles]) -> Row:
    """Count the pairs of a DUPLICATES table, and measure their effect on accuracies.

    A test image with a duplicate among the training images leaks: its accuracy is not that of a new
    image.
    """
    table, _ = tables.read(path, tables.DUPLICATES)
    in_test, in_train = (  # [2, P]
        np.stack([split.places(table[name]) for name in ("image_id", "duplicate_id")])
        for split in (test, train)
    )
    in_split = (in_test >= 0).sum(axis=0)  # how many of each pair are of the test split
    leaked = np.zeros(len(test), np.bool_)
    leaked[in_test[(in_test >= 0) & (in_split == 1)]] = True

    def path_of(column: int, row: int) -> str:
        place = int(in_test[column, row])
        return test.path(place) if place >= 0 else train.path(int(in_train[column, row]))

    return {
        "pairs": len(table),
        **{
            name: int((in_split == n).sum())
            for n, name in enumerate(("training", "between", "test"))
        },
        "leaked": int(leaked.sum()),
        "accuracies": _leak_free_accuracies(test, leaked, run_files),
        "examples": _pairs(table, path_of),
    }


def _leak_free_accuracies(
    test: Split, leaked: npt.NDArray[np.bool_], run_files: Sequence[RunFiles]
) -> list[Row]:
    """Return the accuracy of each method in percent, and that without leaked images [N].

    None where no label is known, or no test image leaks, or all do.
    """
    if test.labels is None or not leaked.any() or leaked.all():
        return []
    rows = []
    for method in dict.fromkeys(run.method for run in run_files):
        paths = [run.predictions for run in run_files if run.method == method]
        right = np.stack([read_labels(path) == test.labels for path in paths])  # [S, N]
        acc1, without = (100 * float(part.mean()) for part in (right, right[:, ~leaked]))
        rows.append({"method": method, "acc1": acc1, "without": without})
    return rows


def _pairs(table: pa.Table, path_of: Callable[[int, int], str]) -> list[Row]:
    """Return pairs with pictures, evenly spread from the most alike to the least."""
    order = np.argsort(table["distance"].to_numpy(), kind="stable")
    some = np.unique(np.linspace(0, len(order) - 1, min(PAIRS, len(order))).astype(int))
    return [
        {
            "image_ids": [str(table[name][row]) for name in ("image_id", "duplicate_id")],
            "pictures": [picture_of(path_of(column, row), TWIN, TWIN_BYTES) for column in (0, 1)],
        }
        for row in order[some].tolist()
    ]
