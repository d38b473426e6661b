"""The labels of a dataset as one table, with one row per training image.

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

from latteclip.audit.sampling import SamplingPlan, answers_path, plan_path, read_plan
from latteclip.audit.score import answered_prefix
from latteclip.clip.classifier import classify, load_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.deploy.abstention import require_answers
from latteclip.deploy.calibration import Calibration, calibrate
from latteclip.labels.answers import CLASS, NONE, UNSURE, Answer, read_answers
from latteclip.labels.features import read_features
from latteclip.labels.guarantees import conformal_accepted, fewest_answers, pac_threshold

log = logging.getLogger(__name__)
SPLIT = "train"  # the audit of these images
MIN_ANSWERS = 50  # that calibrate
# Expected calibration error of fused_confidence on the demo: `python benchmarks/calibration.py`.
DEMO_ERROR = 0.21
ANSWERS = {NONE: "none of these", UNSURE: "cannot tell"}
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        # Classes, but for captions and ids. The label is null where a person says "none of these".
        ("label", pa.string()),
        ("answered", pa.string()),  # a person's answer in the audit; null: not asked
        ("fused_label", pa.string()),  # the workflow's label, and the probability that it is right
        ("probability", pa.float32()),
        ("runner_up", pa.string()),  # the best other class by images alone; null: there is none
        ("zero_shot", pa.string()),
        ("zero_shot_calibrated", pa.string()),
        ("image_prototypes", pa.string()),  # null where they were not used
        ("caption_label", pa.string()),  # of the caption alone; null where it names no class
        ("caption_confidence", pa.float32()),
        ("caption", pa.string()),
        ("lmm_label", pa.string()),  # of class scores alone
        ("lmm_confidence", pa.float32()),
        ("unknown_score", pa.float32()),
        ("unknown_score_by_captioner", pa.float32()),
        ("is_unknown", pa.bool_()),
        ("duplicate_of", pa.string()),  # the image_id of another row of the same picture
    ]
)
# Further columns, where a guarantee is asked for: whether the label may be taken, and why.
GUARANTEE = pa.schema([("accepted", pa.bool_()), ("guarantee", pa.string())])


@dataclass(frozen=True)
class LabelTable:
    """Labels of N images, and what describes them."""

    table: pa.Table  # the columns of SCHEMA; names as dictionaries, which take less memory
    classnames: list[str]  # as the dataset writes them
    calibration: Calibration | None
    described: dict[str, Any]

    @property
    def calibration_error(self) -> str:
        """Describe how far the probabilities are off."""
        if self.calibration is None:
            return (
                "uncalibrated; on the demo such probabilities have an expected calibration error "
                f"of {DEMO_ERROR}"
            )
        return (
            f"calibrated by {self.calibration.answers} answers; expected calibration error "
            f"{self.calibration.error:.2f} by held-out answers, "
            f"{self.calibration.error_before:.2f} before"
        )


def read(folder: str | Path) -> LabelTable:
    """Read the labels of a dataset's results, and the answers of an audit.

    Raises:
        UserError: there are no labels yet, or a file is missing.
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
    classnames = tables.read_metadata(index, "image_id")["classnames"]
    written = tables.read_written_names(index)
    names = [written.get(name, name) for name in classnames]
    answers, calibration = _answers(folder, ids, labels)
    answers = _teaching_answers(described, classnames) | answers
    confidence = labels["fused_confidence"].to_numpy().astype(np.float64)
    columns = {
        "image_id": ids,
        "path": _column(index, tables.IMAGES, "path", ids),
        "label": _named(_corrected(labels, answers, classnames), names),
        "answered": _answered(answers, ids, written),
        "fused_label": _named(labels["fused_label"], names),
        "probability": (calibration or np.asarray)(confidence).astype(np.float32),
        "runner_up": _named(_runner_up(folder, labels, classnames), names),
        **_label_sources(folder, labels, names),
        "duplicate_of": _duplicates(folder / "duplicates.parquet", ids, answers),
    }
    keys = ("model", "pretrained", "votes")
    kept: dict[str, Any] = {key: described[key] for key in keys if key in described}
    return LabelTable(pa.table(columns).select(SCHEMA.names), names, calibration, kept)


def _named(labels: pa.ChunkedArray, classnames: Sequence[str]) -> pa.DictionaryArray:
    """Return the names of labels [N], each stored once. A null stays null."""
    names = pa.array(classnames, pa.string())
    return pa.DictionaryArray.from_arrays(labels.combine_chunks(), names)


def _runner_up(folder: Path, labels: pa.Table, classnames: list[str]) -> pa.ChunkedArray:
    """Return the best class other than the label, by zero-shot scores and image prototypes."""
    head, _ = load_classifier(
        folder / "classifiers" / "image_prototypes.safetensors", classnames=classnames
    )
    features = read_features(str(folder / "pseudo_labels.parquet"), labels["image_id"])
    best = classify(features, head, 2)[0].numpy()
    is_label = best[:, 0] == labels["fused_label"].to_numpy()
    return pa.chunked_array([np.where(is_label, best[:, 1], best[:, 0])])


def _label_sources(folder: Path, labels: pa.Table, classnames: list[str]) -> dict[str, Any]:
    """Return the columns of each source of labels, of the captions and of unknown images."""
    ids = labels["image_id"]
    pseudo_labels, captions = folder / "pseudo_labels.parquet", folder / "captions/images.parquet"
    zero_shot = _column(pseudo_labels, tables.PSEUDO_LABELS, "pseudo_label", ids)
    columns = {
        "zero_shot": _named(zero_shot, classnames),
        "zero_shot_calibrated": _named(labels["calibrated_label"], classnames),
        "image_prototypes": _named(labels["image_label"], classnames),
        "caption": _column(captions, tables.CAPTIONS, "caption", ids, optional=True),
    }
    for name in ("caption", "lmm"):
        confidence = labels[f"{name}_confidence"]
        is_known = pc.greater(confidence, 0)
        label = pc.if_else(is_known, labels[f"{name}_label"], None)
        columns[f"{name}_label"] = _named(label, classnames)
        columns[f"{name}_confidence"] = pc.if_else(is_known, confidence, None)
    for name, column in {
        "unknown_score": "score",
        "unknown_score_by_captioner": "captioner_score",
        "is_unknown": "is_unknown",
    }.items():
        path = folder / "unknown.parquet"
        columns[name] = _column(path, tables.UNKNOWN, column, ids, optional=True)
    return columns


def _column(
    path: Path, schema: pa.Schema, name: str, ids: pa.ChunkedArray, *, optional: bool = False
) -> pa.ChunkedArray | pa.Array:
    """Return a column of a table of images, in the order of `ids`; nulls for an optional table."""
    if optional and not path.is_file():
        return pa.nulls(len(ids), schema.field(name).type)
    return tables.lookup_column(path, schema, schema.names[0], name, ids)


def _duplicates(
    path: Path, ids: pa.ChunkedArray, answers: Mapping[str, Answer]
) -> pa.ChunkedArray | pa.Array:
    """Return for each image the id of another one of the same picture; null for the first.

    Of images of the same picture, the first is one with an answer, or else the first of the table.
    """
    if not path.is_file():
        return pa.nulls(len(ids), pa.string())
    pairs, _ = tables.read(path, tables.DUPLICATES, ["image_id", "duplicate_id"])
    rows = [pc.index_in(pairs[name], ids) for name in pairs.column_names]
    both = pc.and_(*(pc.is_valid(one) for one in rows))
    one, other = (part.filter(both).to_numpy() for part in rows)
    is_answered = pc.is_in(ids, pa.array(list(answers), pa.string())).to_numpy()
    rank = np.argsort(np.argsort(~is_answered, kind="stable"))
    is_later = rank[one] > rank[other]
    later, first = np.where(is_later, one, other), np.where(is_later, other, one)
    original: dict[int, int] = {}
    for place in np.lexsort((rank[first], rank[later])).tolist():
        if first[place] not in original:  # else its own original decides
            original.setdefault(int(later[place]), int(first[place]))
    rows_of_originals = np.full(len(ids), -1)
    rows_of_originals[list(original)] = list(original.values())
    return ids.take(pa.array(rows_of_originals, mask=rows_of_originals < 0))


# --- answers of an audit -------------------------------------------------------------------------


def has_answers(folder: Path, split: str) -> bool:
    """Return whether a person answered in the audit of a split."""
    return answers_path(folder, split).is_file()


def _answers(
    folder: Path, ids: pa.ChunkedArray, labels: pa.Table
) -> tuple[dict[str, Answer], Calibration | None]:
    """Return the answers about these images, and the calibration that they give."""
    if not has_answers(folder, SPLIT):
        return {}, None
    plan = read_plan(plan_path(folder, SPLIT))
    answers, _ = read_answers(answers_path(folder, SPLIT), plan.schema(folder.absolute().name))
    prefix = answered_prefix(plan, answers)
    certain = {name: one for name, one in prefix.items() if one.kind != UNSURE}
    if len(certain) >= MIN_ANSWERS:
        return answers, _calibration(plan, certain, ids, labels)
    log.warning(
        "%d answers do not calibrate the probabilities; %d do: latteclip audit %s --split %s.",
        *(len(certain), MIN_ANSWERS, folder, SPLIT),
    )
    return answers, None


def _teaching_answers(described: Mapping[str, Any], classnames: Sequence[str]) -> dict[str, Answer]:
    """Return the answers from which the labels learned, where both answers about an image agree."""
    images = described.get("answers", {}).get("images", {})
    return {
        image: Answer(image, NONE if name is None else CLASS, name)
        for image, name in images.items()
        if name is None or name in classnames
    }


def accepted(
    folder: Path, max_error: float | None, false_discovery: float | None
) -> tuple[pa.Array, str]:
    """Return which labels [N] may be taken without a look, and the guarantee in words.

    Answered images are taken by their answers.

    Args:
        folder: results/<dataset>.
        max_error: the share of all labels that may be wrong and taken, or None.
        false_discovery: the share of the taken labels that may be wrong on average, or None.

    Raises:
        UserError: there are too few answers about images that were drawn at random.
    """
    labels, described = tables.read(folder / "fused_labels.parquet", tables.FUSED_LABELS)
    answers = described.get("answers", {"images": {}})
    checked = answers.get("checked", {"confidence": [], "right": []})
    confidence, right = np.array(checked["confidence"]), np.array(checked["right"], dtype=bool)
    share = max_error if max_error is not None else false_discovery
    needed = fewest_answers(max_error) if max_error is not None else int(1 / (share or 1))
    require_answers(len(right), needed, share or 0, folder)
    sure = labels["fused_confidence"].to_numpy().astype(np.float64)
    n = len(sure)
    if max_error is not None:
        taken = sure >= pac_threshold(confidence, ~right, max_error)
        promise = f"at most {100 * max_error:g} % of all labels are wrong and taken, with 95 % "
        promise += "probability"
    else:
        taken = conformal_accepted(confidence, ~right, sure, float(false_discovery or 0))
        promise = f"on average at most {100 * float(share or 0):g} % of the taken labels are wrong"
    by_person = pc.is_in(labels["image_id"], pa.array(list(answers["images"]))).to_numpy()
    taken = taken | by_person
    words = (
        f"Of {n:,} labels {taken.sum():,} may be taken: {promise}. For all of them, answer about "
        f"the other {n - taken.sum():,}."
    )
    return pa.array(taken), words


def _calibration(
    plan: SamplingPlan, answers: Mapping[str, Answer], ids: pa.ChunkedArray, labels: pa.Table
) -> Calibration:
    """Calibrate by n answers. Each stands for its stratum's images per answer."""
    answered = pa.array(list(answers))
    rows = pc.index_in(answered, ids).to_numpy()
    fused = labels["fused_label"].to_numpy()[rows]
    confidence = labels["fused_confidence"].to_numpy()[rows].astype(np.float64)
    right = np.array(
        [
            one.classname == plan.classnames[label]
            for one, label in zip(answers.values(), fused, strict=True)
        ]
    )
    strata = plan.strata[pc.index_in(answered, pa.array(plan.image_ids)).to_numpy()]
    n = plan.strata.max() + 1
    images_per_answer = np.bincount(plan.strata) / np.bincount(strata, minlength=n).clip(min=1)
    return calibrate(confidence, right.astype(np.float64), images_per_answer[strata])


def _corrected(
    labels: pa.Table, answers: Mapping[str, Answer], classnames: Sequence[str]
) -> pa.ChunkedArray:
    """Return the labels [N] with answers in their place; null for "none of these"."""
    number = {name: label for label, name in enumerate(classnames)}
    corrected = labels["fused_label"].to_numpy().copy()
    is_none = np.zeros(len(corrected), dtype=bool)
    rows = pc.index_in(pa.array(list(answers), pa.string()), labels["image_id"]).to_pylist()
    for row, one in zip(rows, answers.values(), strict=True):
        if one.kind == CLASS:
            corrected[row] = number[str(one.classname)]
        is_none[row] = one.kind == NONE
    return pa.chunked_array([pa.array(corrected, mask=is_none)])


def _answered(
    answers: Mapping[str, Answer], ids: pa.ChunkedArray, written: Mapping[str, str]
) -> pa.Array:
    """Return the answer about each image in words; null where there is none."""
    rows = pc.index_in(ids, pa.array(list(answers), pa.string())).combine_chunks()
    words = [
        written.get(one.classname, one.classname) if one.classname else ANSWERS[one.kind]
        for one in answers.values()
    ]
    return pa.array(words, pa.string()).take(rows)
