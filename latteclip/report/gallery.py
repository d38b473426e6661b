"""Pictures of a dataset's page, with their captions, predictions and near-duplicates.

Pictures are small WebP files as data URIs. However many images and classes there are, the gallery
takes at most 1.9 MB as text, and the other pictures 1.5 MB.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip.captions.metadata import CaptionsMetadata
from latteclip.captions.pictures import grid
from latteclip.captions.text import mention
from latteclip.config.sections.groups import GroupsSection
from latteclip.core import tables
from latteclip.core.files import read_object
from latteclip.core.metadata import UnknownMetadata
from latteclip.data.images import open_rgb
from latteclip.labels.guarantees import Bools
from latteclip.report import comparison
from latteclip.report.comparison import MethodPredictions, Row
from latteclip.report.runs import RunTables, SplitReport, read_predictions

QUALITIES = (80, 60, 40, 20)
# Rows of a table that are read at a time: there may be millions of captions.
PIECE = 100_000
# Longer side in pixels, and bytes before base64.
PICTURE = (320, 30_000)  # a picture of the gallery
GRID = (448, 60_000)
DISPUTE = (240, 9_000)
THUMBNAIL = (112, 3_500)
DUPLICATE = (168, 8_000)
# Numbers of pictures.
EXAMPLES = 6
DISPUTES = 12
UNKNOWN = 24
SETS = 6
ENDS, OF_CLASS = 240, 3  # surest and least sure: in all, and of a class at each end


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
                return Picture(
                    f"data:image/webp;base64,{encoded}", small.width, small.height
                )
        small = small.resize((max(1, small.width // 2), max(1, small.height // 2)))


def _image(split: SplitReport, i: int, size: tuple[int, int]) -> Row:
    shown = picture(open_rgb(split.paths[i], max_side=size[0]), *size)
    return {"image_id": split.image_ids[i], "picture": shown}


class CaptionPictures(NamedTuple):
    """The captions of one kind, as far as the page needs them."""

    metadata: CaptionsMetadata
    # Texts that name the pseudo-label of their image, and its label, in percent.
    naming: dict[str, float | None]
    rows: dict[int, Row]  # `caption` and `members` by the number of an image


def read_captions(
    path: str, train: SplitReport, chosen: Sequence[int], classnames: Sequence[str]
) -> CaptionPictures:
    """Read the caption of each chosen training image, or of a group of its pseudo-label.

    If possible, that is a group that holds the image.
    """
    metadata = tables.read_metadata(path, CaptionsMetadata)
    known = {"pseudo_label": train.pseudo_labels}
    if train.labels is not None and metadata.groups is None:
        known["label"] = train.labels
    numbers = {train.image_ids[i]: i for i in chosen}
    counts: Counter[str] = Counter()
    rows: dict[int, Row] = {}
    of_label: dict[int, Row] = {}
    mentions = [mention(classname) for classname in classnames]
    for piece in tables.read_pieces(path, tables.CAPTIONS, ["members", "caption"], PIECE):
        first_members = train.places(pc.list_element(piece["members"], 0))
        captions = piece.to_pylist()
        counts["texts"] += sum(bool(row["caption"]) for row in captions)
        for kind, labels in known.items():
            labels_of_rows = labels[first_members].tolist()
            for row, label in zip(captions, labels_of_rows, strict=True):
                counts[kind] += bool(mentions[label].search(row["caption"]))
        pseudo_labels = train.pseudo_labels[first_members].tolist()
        for row, label in zip(captions, pseudo_labels, strict=True):
            of_label.setdefault(label, row)
            for name in numbers.keys() & row["members"]:
                rows.setdefault(numbers[name], row)
    if metadata.groups is not None:
        labels_of = {i: int(train.pseudo_labels[i]) for i in chosen}
        rows = {i: of_label[n] for i, n in labels_of.items() if n in of_label} | rows
    n = counts["texts"]
    naming = {kind: 100 * counts[kind] / n if n else None for kind in known}
    return CaptionPictures(metadata, naming, rows)


def caption_statistics(
    path: str, captions: Mapping[str, CaptionPictures]
) -> dict[str, Row]:
    """Return the statistics of captions/summary.json by kind, with shares in percent."""
    summaries = read_object(path, [f"{kind}s" for kind in captions])
    statistics = {}
    for kind, caption in captions.items():
        row = summaries[f"{kind}s"]
        statistics[kind] = row | {
            # Captions that end at the token limit.
            "cut": 100 * row["cut"] / max(1, row["captions"]),
            "words": row["words"].get("mean"),
            "tokens": row["tokens"].get("mean"),
            "names_class": 100 * row["share_naming_a_class"],
            "names_pseudo_label": caption.naming["pseudo_label"],
            "names_label": caption.naming.get("label"),
        }
    return statistics


def gallery(
    chosen: Sequence[int],
    train: SplitReport,
    predictions: Sequence[int] | None,
    captions: Mapping[str, CaptionPictures],
    named: Sequence[tuple[str, str]],
) -> list[Row]:
    """Return the chosen training images with captions, predictions and a group of their label.

    `named` has the name of each image's label, and what the label comes from.
    """
    rows = []
    for place, i in enumerate(chosen):
        row = {
            "named": named[place][0],
            "source": named[place][1],
            "pseudo_label": int(train.pseudo_labels[i]),
            "prediction": predictions[place] if predictions else None,
            "label": None if train.labels is None else int(train.labels[i]),
            "image_caption": None,
            "group_caption": None,
            "group": None,
        }
        own = {kind: captioned.rows.get(i) for kind, captioned in captions.items()}
        if image := own.get("image"):
            row["image_caption"] = image["caption"]
        if group := own.get("group"):
            row["group_caption"] = group["caption"]
            groups = captions["group"].metadata.groups
            row["group"] = _grid(group["members"], train, groups)
        rows.append(_image(train, i, PICTURE) | row)
    return rows


def _grid(
    members: Sequence[str], train: SplitReport, groups: GroupsSection | None
) -> Picture:
    """Encode the grid of a group: the captioner's picture or, with separate images, all of them."""
    assert groups is not None  # as these are captions of groups
    rows = train.places(pa.array(members, pa.string())).tolist()
    pictures = [open_rgb(train.paths[i], max_side=groups.canvas) for i in rows]
    return picture(grid(pictures, groups.canvas, groups.gap), *GRID)


def changed_examples(
    split: SplitReport, predictions: MethodPredictions, *, improved: bool
) -> list[Row]:
    """Return images whose prediction changed from wrong to right, or from right to wrong."""
    assert split.labels is not None
    labels = split.labels
    before = split.pseudo_labels
    after = predictions.after
    chosen = comparison.changed_images(
        labels, before, after, predictions.margins, improved=improved, n=EXAMPLES
    )
    rows = []
    for i in chosen:
        classes = {
            "label": int(labels[i]),
            "before": int(before[i]),
            "after": int(after[i]),
        }
        rows.append(_image(split, i, PICTURE) | classes)
    return rows


def disputes(predictions: MethodPredictions, split: SplitReport) -> list[Row]:
    """Return the images about which the methods differ most, with the methods of each class."""
    return [
        _image(split, i, DISPUTE) | {"sides": comparison.sides(predictions, i)}
        for i in comparison.disputed(predictions, DISPUTES)
    ]


def class_panels(predictions: MethodPredictions, split: SplitReport) -> list[Row]:
    """Return the surest and the least sure images of each class, as far as there is room."""

    def thumbnails(rows: Sequence[int]) -> list[Row]:
        return [
            _thumbnail(split, i, predictions.after[i], second=int(predictions.runner_up[i]))
            for i in rows
        ]

    panels = []
    for row in comparison.ends_of_classes(predictions, ENDS, OF_CLASS):
        surest = thumbnails(row["surest"])
        least = thumbnails(row["least"])
        panels.append({**row, "surest": surest, "least": least})
    return panels


def _thumbnail(split: SplitReport, i: int, prediction: int, **more: float) -> Row:
    label = None if split.labels is None else int(split.labels[i])
    row = {"label": label, "prediction": int(prediction), "second": None, "score": None}
    return _image(split, i, THUMBNAIL) | row | more


def read_unknown(path: str, splits: Sequence[SplitReport]) -> Row:
    """Return the images of some splits that most likely show none of the classes."""
    table = tables.read(path, tables.UNKNOWN)
    answers = tables.read_metadata(path, UnknownMetadata).answers or {}
    by_clip, by_captioner = (table[n].to_numpy() for n in ("score", "captioner_score"))
    # Images with a captioner's score, which is not NaN, come first.
    best = np.lexsort((-by_clip, -by_captioner))[:UNKNOWN]
    places = _find(table["image_id"].take(best), splits)
    return {
        "answered": sum(answers.values()),
        "marked": pc.sum(table["is_unknown"]).as_py() or 0,
        "images": len(table),
        "scored": int((~np.isnan(by_captioner)).sum()),
        "likeliest": [
            _thumbnail(split, i, split.pseudo_labels[i], score=score)
            for (split, i), score in zip(places, by_clip[best].tolist(), strict=True)
        ],
    }


def _find(
    image_ids: pa.ChunkedArray, splits: Sequence[SplitReport]
) -> list[tuple[SplitReport, int]]:
    """Return the split that each image is in, and its position there."""
    places = np.transpose([split.places(image_ids) for split in splits])  # [n, splits]
    located = []
    for rows in places.tolist():
        in_splits = zip(splits, rows, strict=True)
        located.append(next((split, i) for split, i in in_splits if i >= 0))
    return located


def read_duplicates(
    path: str, train: SplitReport, test: SplitReport, run_files: Sequence[RunTables]
) -> Row:
    """Count the sets of a DUPLICATES table, and measure their effect on accuracies.

    A test image with a duplicate among the training images leaks: its accuracy is not that of a new
    image. Examples are the first two images of some sets.
    """
    table = tables.read(path, tables.DUPLICATES)
    sets = table["set"].to_numpy()
    in_test = test.places(table["image_id"])
    n_sets = int(sets.max(initial=-1)) + 1
    of_test = np.bincount(sets[in_test >= 0], minlength=n_sets)
    of_train = np.bincount(sets[in_test < 0], minlength=n_sets)
    are_both = (of_test > 0) & (of_train > 0)
    leaked = np.zeros(len(test), np.bool_)
    leaked[in_test[(in_test >= 0) & are_both[sets]]] = True
    spread = np.linspace(0, n_sets - 1, min(SETS, n_sets)).astype(int)
    examples = []
    for number in spread:
        ids = table["image_id"].filter(pa.array(sets == number))[:2]
        examples.append(
            [_image(split, i, DUPLICATE) for split, i in _find(ids, (train, test))]
        )
    return {
        "images": len(table),
        "sets": n_sets,
        "training": int((of_test == 0).sum()),
        "between": int(are_both.sum()),
        "test": int((of_train == 0).sum()),
        "leaked": int(leaked.sum()),
        "accuracies": _leak_free_accuracies(test, leaked, run_files),
        "examples": examples,
    }


def _leak_free_accuracies(
    test: SplitReport, leaked: Bools, run_files: Sequence[RunTables]
) -> list[Row]:
    """Return the accuracy of each method in percent, and without leaked images, if some leak."""
    if test.labels is None or not leaked.any() or leaked.all():
        return []
    rows = []
    for method in dict.fromkeys(run.method for run in run_files):
        paths = [run.predictions for run in run_files if run.method == method]
        # [runs, N]
        right = np.stack([read_predictions(path) == test.labels for path in paths])
        acc1 = 100 * float(right.mean())
        without = 100 * float(right[:, ~leaked].mean())
        rows.append({"method": method, "acc1": acc1, "without": without})
    return rows
