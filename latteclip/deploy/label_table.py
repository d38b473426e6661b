"""The labels of a dataset as a table to take away: one row per training image.

Where a person answered in the audit, the answer is the label.

Letters: N images, C classes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.audit.answers import CLASS, NONE, UNSURE, Answer, read_answers
from latteclip.audit.sampling import SamplingPlan, answers_path, plan_path, read_plan
from latteclip.audit.score import answered_prefix
from latteclip.clip.classifier import classify, load_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.deploy.calibration import Calibration, calibrate
from latteclip.labels.features import read_features

log = logging.getLogger(__name__)
SPLIT = "train"  # the audit of these images
FEWEST = 50  # answers that calibrate
# Expected calibration error of fused_confidence on the demo: `python benchmarks/calibration.py`.
DEMO_ERROR = 0.21
SAID = {NONE: "none of these", UNSURE: "cannot tell"}
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        # Classes, but for captions and ids. The label is null where a person says "none of these".
        ("label", pa.string()),
        ("answered", pa.string()),  # a person's answer in the audit; null: was not asked
        ("fused_label", pa.string()),  # the workflow's label, and the probability that it is right
        ("probability", pa.float32()),
        ("runner_up", pa.string()),  # the best other class by images alone; null: there is none
        ("zero_shot", pa.string()),
        ("zero_shot_calibrated", pa.string()),
        ("image_prototypes", pa.string()),  # null where they were not believed
        ("caption_label", pa.string()),  # of the caption alone; null where it says nothing
        ("caption_confidence", pa.float32()),
        ("caption", pa.string()),
        ("lmm_label", pa.string()),  # of class scores alone
        ("lmm_confidence", pa.float32()),
        ("unknown_score", pa.float32()),
        ("unknown_score_by_captioner", pa.float32()),
        ("is_unknown", pa.bool_()),
        ("duplicate_of", pa.string()),  # the image_id of another row that shows the same picture
    ]
)


@dataclass(frozen=True)
class TakenLabels:
    """Labels of N images, and what describes them."""

    table: pa.Table  # the columns of SCHEMA; names as dictionaries, which take less memory
    classnames: list[str]  # as the dataset writes them
    calibration: Calibration | None
    described: dict[str, Any]

    @property
    def worth(self) -> str:
        """What the probabilities are worth, in words."""
        fitted = self.calibration
        if fitted is None:
            return (
                "uncalibrated; on the demo such probabilities have an expected calibration error "
                f"of {DEMO_ERROR}"
            )
        return (
            f"calibrated by {fitted.answers} answers; expected calibration error "
            f"{fitted.error:.2f} by answers held apart, {fitted.error_before:.2f} before"
        )


def read(folder: str | Path) -> TakenLabels:
    """What the stages wrote of a dataset, and what a person answered.

    Raises:
        UserError: there are no labels yet, or a file is missing or of other images.
    """
    folder = Path(folder)
    path = folder / "fused_labels.parquet"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: the labels are not made yet; run "
            f"snakemake -j4 labels --config dataset={folder.absolute().name}."
        )
    labels, described = tables.read(path, tables.FUSED_LABELS)
    ids = labels["image_id"]
    index = folder / "images.parquet"
    classnames, is_whole = _of_index(index, ids)
    if not is_whole:
        raise UserError(f"{path} is of other images than images.parquet; rerun the workflow.")
    written = tables.read_written_names(index)
    names = [written.get(name, name) for name in classnames]
    answers, calibration = _answers(folder, ids, labels)
    columns = {
        "image_id": labels["image_id"],
        "path": _column(index, tables.IMAGES, "path", ids),
        "label": _named(_corrected(labels, answers, classnames), names),
        "answered": _answered(answers, ids, written),
        "fused_label": _named(labels["fused_label"], names),
        "probability": _probabilities(labels, calibration),
        "runner_up": _named(_runner_up(folder, labels, classnames), names),
        **_witnesses(folder, ids, labels, names),
        **_unknown(folder, ids),
        "duplicate_of": _duplicates(folder / "duplicates.parquet", ids, answers),
    }
    of_labels = ("model", "pretrained", "votes")
    kept: dict[str, Any] = {key: described[key] for key in of_labels if key in described}
    return TakenLabels(pa.table(columns).select(SCHEMA.names), names, calibration, kept)


def _of_index(path: Path, ids: pa.ChunkedArray) -> tuple[list[str], bool]:
    """The classes of an index, and whether these ids are those of its training images."""
    index, classnames = tables.read_unlabelled(path, training=True)
    found = pc.index_in(index["image_id"], ids)
    return classnames, len(ids) == len(index) and not found.null_count


def _named(labels: pa.ChunkedArray, classnames: Sequence[str]) -> pa.DictionaryArray:
    """The names of labels [N], each kept once; null where the label is."""
    names = pa.array(classnames, pa.string())
    return pa.DictionaryArray.from_arrays(labels.combine_chunks(), names)


def _probabilities(labels: pa.Table, calibration: Calibration | None) -> np.ndarray:
    confidence = labels["fused_confidence"].to_numpy().astype(np.float64)
    return (calibration(confidence) if calibration else confidence).astype(np.float32)


def _runner_up(folder: Path, labels: pa.Table, classnames: list[str]) -> pa.ChunkedArray:
    """The class other than the label that zero-shot scores and image prototypes find best."""
    head, _ = load_classifier(
        folder / "classifiers" / "image_prototypes.safetensors", classnames=classnames
    )
    features = read_features(str(folder / "pseudo_labels.parquet"), labels["image_id"])
    best = classify(features, head, 2)[0].numpy()
    is_label = best[:, 0] == labels["fused_label"].to_numpy()
    return pa.chunked_array([np.where(is_label, best[:, 1], best[:, 0])])


def _witnesses(
    folder: Path, ids: pa.ChunkedArray, labels: pa.Table, classnames: list[str]
) -> dict[str, Any]:
    """What zero-shot scores, image prototypes, the caption and class scores say by themselves."""
    path = folder / "pseudo_labels.parquet"
    zero_shot = _column(path, tables.PSEUDO_LABELS, "pseudo_label", ids)
    found = {
        "zero_shot": _named(zero_shot, classnames),
        "zero_shot_calibrated": _named(labels["calibrated_label"], classnames),
        "image_prototypes": _named(labels["image_label"], classnames),
        "caption": _captions(folder / "captions" / "images.parquet", ids),
    }
    for name in ("caption", "lmm"):
        confidence = labels[f"{name}_confidence"]
        speaks = pc.greater(confidence, 0)
        said = pc.if_else(speaks, labels[f"{name}_label"], None)
        found[f"{name}_label"] = _named(said, classnames)
        found[f"{name}_confidence"] = pc.if_else(speaks, confidence, None)
    return found


def _column(path: Path, schema: pa.Schema, name: str, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of a table of images, in the order of these."""
    return tables.lookup_column(path, schema, schema.names[0], name, ids)


def _captions(path: Path, ids: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """The caption of each image; null where class scores vote and there is none."""
    if not path.is_file():
        return pa.nulls(len(ids), pa.string())
    return _column(path, tables.CAPTIONS, "caption", ids)


def _unknown(folder: Path, ids: pa.ChunkedArray) -> dict[str, pa.ChunkedArray | pa.Array]:
    """Whether images belong to none of the classes; nulls where that was not asked."""
    path = folder / "unknown.parquet"
    names = {
        "unknown_score": "score",
        "unknown_score_by_captioner": "captioner_score",
        "is_unknown": "is_unknown",
    }
    if not path.is_file():
        return {name: pa.nulls(len(ids), SCHEMA.field(name).type) for name in names}
    return {name: _column(path, tables.UNKNOWN, column, ids) for name, column in names.items()}


def _duplicates(
    path: Path, ids: pa.ChunkedArray, answers: Mapping[str, Answer]
) -> pa.ChunkedArray | pa.Array:
    """Name for each image another one that shows the same picture; null where it is the first.

    Of images that show the same, the first is an answered one, or else the first of the table.
    """
    if not path.is_file():
        return pa.nulls(len(ids), pa.string())
    pairs, _ = tables.read(path, tables.DUPLICATES, ["image_id", "twin_id"])
    rows = [pc.index_in(pairs[name], ids) for name in pairs.column_names]
    both = pc.and_(*(pc.is_valid(one) for one in rows))
    one, other = (part.filter(both).to_numpy() for part in rows)
    is_answered = pc.is_in(ids, pa.array(list(answers), pa.string())).to_numpy()
    rank = np.argsort(np.argsort(~is_answered, kind="stable"))
    is_later = rank[one] > rank[other]
    later, first = np.where(is_later, one, other), np.where(is_later, other, one)
    found: dict[int, int] = {}
    for place in np.lexsort((rank[first], rank[later])).tolist():
        if first[place] not in found:  # else what it is a duplicate of decides
            found.setdefault(int(later[place]), int(first[place]))
    shows = np.full(len(ids), -1)
    shows[list(found)] = list(found.values())
    return ids.take(pa.array(shows, mask=shows < 0))


# --- a person's answers --------------------------------------------------------------------------


def has_answers(folder: Path, split: str) -> bool:
    """Return whether a person answered in the audit of a split."""
    return answers_path(folder, split).is_file()


def _answers(
    folder: Path, ids: pa.ChunkedArray, labels: pa.Table
) -> tuple[dict[str, Answer], Calibration | None]:
    """The answers that stand about these images, and what they teach of the probabilities."""
    if not has_answers(folder, SPLIT):
        return {}, None
    plan = read_plan(plan_path(folder, SPLIT))
    answers, _ = read_answers(answers_path(folder, SPLIT), plan.schema(folder.absolute().name))
    found = answered_prefix(plan, answers)
    told = {name: one for name, one in found.items() if one.kind != UNSURE}
    if len(told) >= FEWEST:
        return answers, _calibration(plan, told, ids, labels)
    log.warning(
        "%d answers do not calibrate the probabilities; %d do: latteclip audit %s --split %s.",
        *(len(told), FEWEST, folder, SPLIT),
    )
    return answers, None


def _calibration(
    plan: SamplingPlan, told: Mapping[str, Answer], ids: pa.ChunkedArray, labels: pa.Table
) -> Calibration:
    """What n answers teach, each for as many images as its stratum has for one answer."""
    rows = pc.index_in(pa.array(list(told)), ids).to_numpy()
    fused = labels["fused_label"].to_numpy()[rows]
    confidence = labels["fused_confidence"].to_numpy()[rows].astype(np.float64)
    said = [one.classname for one in told.values()]
    named = [plan.classnames[label] for label in fused]
    right = np.array([one == other for one, other in zip(said, named, strict=True)])
    places = pc.index_in(pa.array(list(told)), pa.array(plan.image_ids)).to_numpy()
    strata = plan.strata[places]
    n = plan.strata.max() + 1
    stands_for = np.bincount(plan.strata) / np.bincount(strata, minlength=n).clip(min=1)
    return calibrate(confidence, right.astype(np.float64), stands_for[strata])


def _corrected(
    labels: pa.Table, answers: Mapping[str, Answer], classnames: Sequence[str]
) -> pa.ChunkedArray:
    """Labels [N] as a person's answers have them; null where an image is of none of the classes."""
    number = {name: label for label, name in enumerate(classnames)}
    found = labels["fused_label"].to_numpy().copy()
    is_none = np.zeros(len(found), dtype=bool)
    rows = pc.index_in(pa.array(list(answers), pa.string()), labels["image_id"]).to_pylist()
    for row, one in zip(rows, answers.values(), strict=True):
        if one.kind == CLASS:
            found[row] = number[str(one.classname)]
        is_none[row] = one.kind == NONE
    return pa.chunked_array([pa.array(found, mask=is_none)])


def _answered(
    answers: Mapping[str, Answer], ids: pa.ChunkedArray, written: Mapping[str, str]
) -> pa.Array:
    """Return what a person said of each image; null where nobody was asked."""
    rows = pc.index_in(ids, pa.array(list(answers), pa.string())).combine_chunks()
    said = [
        written.get(one.classname, one.classname) if one.classname else SAID[one.kind]
        for one in answers.values()
    ]
    return pa.array(said, pa.string()).take(rows)
