"""The labels of a dataset as one table, with one row per training image.

Where a person answered, the answer is the label. Answers about images that were drawn at random
(`latteclip teach`) calibrate the probabilities of the labels, each learned without its answer, by
Platt's calibration (1999): the log-odds of a probability times a slope, whose inverse is called
temperature, plus an intercept. Both are fitted to the answers by maximum likelihood.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.config.jobs import FOLDER_LINK
from latteclip.config.registry import VOTES
from latteclip.core import tables
from latteclip.core.answers import ANSWERS, NONE, WORDS
from latteclip.core.run_options import labels_path, run_command
from latteclip.core.tables import IndexMetadata
from latteclip.data.folder_files import linked
from latteclip.deploy.guaranteed_predictions import threshold_of
from latteclip.labels.fusion_report import LABELS, NAME, Check, read_fusion_report
from latteclip.labels.votes import Floats

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
MIN_ANSWERS = 50  # that calibrate
MARGIN = 1e-6  # distance of probabilities from 0 and 1


@dataclass
class LabelsMetadata:
    """What exported labels say of themselves."""

    classnames: list[str]  # as the dataset writes them
    calibration: "Calibration | None"


def read_labels(results: str | Path) -> "pd.DataFrame":
    """Return the labels of the training images of results/<dataset>, a row for each image.

    The columns are those of exported labels: `image_id`, `path`, `label` (a person's answer if
    there is one), `probability`, and what each signal says. Raises UserError before there are
    labels.
    """
    folder = Path(results)
    labels: pd.DataFrame = with_duplicates(read(folder)[0], folder).to_pandas()
    return labels


def read(
    folder: Path, max_error: float | None = None
) -> tuple[pa.Table, LabelsMetadata]:
    """Read the labels of a dataset's results, a person's answers, and what describes the labels.

    Names of classes are dictionaries, which take less memory. `max_error` adds the column
    `accepted`: with 95 % probability, at most such a share of all labels is wrong and accepted.
    Labels by answers are accepted. Raises UserError before there are labels, and if too few answers
    about images that were drawn at random check them.
    """
    index = folder / "images.parquet"
    labels = tables.read(labels_path(folder))
    report = read_fusion_report(folder / NAME)
    saved = folder / ANSWERS
    if saved.exists() and saved.stat().st_mtime > (folder / NAME).stat().st_mtime:
        log.warning(
            "Labels do not follow the last answers of %s yet; run %s.",
            saved,
            run_command(folder),
        )
    ids = labels["image_id"]
    of_index = tables.read_metadata(index, IndexMetadata)
    classnames = of_index.classnames
    written = of_index.as_written(classnames)
    names = pa.array(written, pa.string())
    check = report.checks.get(LABELS, [])
    calibration = calibrate(check)
    answers = report.answers
    # Null: no answer.
    rows = pc.index_in(ids, pa.array(list(answers), pa.string()))
    classes = pc.index_in(
        pa.array(answers.values(), pa.string()), pa.array(classnames, pa.string())
    )
    of_answers = pc.if_else(
        pc.is_valid(rows), classes.take(rows), labels["fused_label"]
    )
    confidence = labels["fused_confidence"].to_numpy().astype(np.float64)
    probability = calibration(confidence) if calibration else confidence

    def column(
        file: str, name: str, kind: pa.DataType
    ) -> pa.ChunkedArray | pa.Array:
        """Return a column of another table of images, or nulls without the table."""
        if not (folder / file).is_file():
            return pa.nulls(len(ids), kind)
        return tables.lookup_column(folder / file, name, ids)

    def named(labels: pa.ChunkedArray) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(labels.combine_chunks(), names)

    zero_shot = tables.lookup_column(
        folder / "pseudo_labels.parquet", "pseudo_label", ids
    )
    columns = {
        "image_id": ids,
        "path": _places(folder, tables.lookup_column(index, "path", ids)),
        "label": named(of_answers),
        "answered": pc.fill_null(names.take(classes), WORDS[NONE]).take(rows),
        # The label that the workflow chose.
        "fused_label": named(labels["fused_label"]),
        "probability": probability.astype(np.float32),  # of `fused_label`
        "zero_shot": named(zero_shot),
        "zero_shot_adapted": named(labels["adapted_label"]),
        # Null where they were not used.
        "image_prototypes": named(labels["image_label"]),
    }
    for labeller in VOTES:  # by its votes alone; null where they name no class
        label, sure = f"{labeller}_label", f"{labeller}_confidence"
        has_vote = pc.greater(labels[sure], 0)
        columns[label] = named(pc.if_else(has_vote, labels[label], None))
        columns[sure] = pc.if_else(has_vote, labels[sure], None)
    columns["caption"] = column("captions/images.parquet", "caption", pa.string())
    columns["unknown_score"] = column("unknown.parquet", "score", pa.float32())
    columns["is_unknown"] = column("unknown.parquet", "is_unknown", pa.bool_())
    if max_error is not None:
        is_sure = confidence >= threshold_of(check, max_error, report, folder)
        columns["accepted"] = pc.or_(pc.is_valid(rows), pa.array(is_sure))
    return pa.table(columns), LabelsMetadata(written, calibration)


def _places(folder: Path, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return where images lie, also for other programs, instead of paths through a link."""
    link = FOLDER_LINK.format(dataset=folder.name)
    below = pc.starts_with(paths, f"{link}/")
    places = pc.replace_substring(paths, link, linked(link), max_replacements=1)
    return pc.if_else(below, places, paths)


def with_duplicates(table: pa.Table, folder: Path) -> pa.Table:
    """Return a table with the column `duplicate_of`, for its images.

    For all but the first image of a set it has the first one. Answered ones come first.
    """
    sets = tables.read(folder / "duplicates.parquet").to_pandas()
    images = table.select(["image_id", "answered"]).to_pandas()
    ordered = images.sort_values(
        "answered", key=lambda column: column.isna(), kind="stable"
    )
    others = ordered.merge(sets).set_index("image_id", drop=False)
    firsts = others.groupby("set")["image_id"].transform("first")
    firsts = firsts[firsts != firsts.index].reindex(images["image_id"])
    column = pa.array(firsts, pa.string(), from_pandas=True)
    return table.append_column("duplicate_of", column)


@dataclass(frozen=True)
class Calibration:
    """A correction of probabilities."""

    slope: float
    intercept: float
    answers: int

    def __call__(self, probabilities: Floats) -> Floats:
        """Return corrected probabilities in the same order."""
        odds = self.slope * _log_odds(probabilities) + self.intercept
        return np.asarray(np.exp(_log_probability(odds)))


def _log_odds(probabilities: Floats) -> Floats:
    inner = probabilities.clip(MARGIN, 1 - MARGIN)
    return np.asarray(np.log(inner) - np.log1p(-inner))


def _log_probability(log_odds: Floats) -> Floats:
    return np.asarray(-np.logaddexp(0, -log_odds))


def calibrate(check: Check) -> Calibration | None:
    """Fit a calibration to the answers that check labels. None: they are too few.

    Few answers leave the slope near 1 and the intercept near 0.
    """
    if len(check) < MIN_ANSWERS:
        return None
    from scipy.optimize import minimize  # it takes half a second to import

    probabilities, right = np.array(check, np.float64).T
    odds = _log_odds(probabilities)
    signs = 2 * right - 1

    def loss(free: Floats) -> float:
        slope, intercept = free
        likelihood = _log_probability(signs * (slope * odds + intercept)).sum()
        prior = ((slope - 1) ** 2 + intercept**2) / 2
        return float(prior - likelihood)

    bounds = [(0, None), (None, None)]
    slope, intercept = minimize(loss, [1.0, 0.0], bounds=bounds).x
    return Calibration(float(slope), float(intercept), len(check))
