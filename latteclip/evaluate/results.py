"""The files of a run with its predictions and metrics, and what later stages read of all runs.

Predictions for the test split give its accuracy. A dataset without a test split has predictions for
its training images instead, and no accuracy. Models compare by their predictions for training
images that they did not learn from. The choice of a model is in selection.json, and the accuracies
by a person's answers are in audit.json.

Letters: N images, K best classes of an image, R runs.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.files import write_json
from latteclip.core.tables import ClassesMetadata, IndexMetadata
from latteclip.labels.fusion_report import FusionReport
from latteclip.labels.guarantees import MIN_ANSWERS, Interval, share_of_new
from latteclip.labels.votes import Ints

log = logging.getLogger(__name__)
Run = tuple[str, int]  # method and seed
# Ids and classes of training images that a run did not learn from.
HeldOut = tuple[pa.ChunkedArray | list[str], npt.ArrayLike]
MISSING = -1
FIGURES = ("acc1", "acc5", "mean_per_class_recall")
QUESTIONS = 120  # the default --budget of `latteclip teach`, of which half check


@dataclass(frozen=True)
class OfRun:
    """What is about one run of a dataset."""

    method: str
    seed: int

    @property
    def run(self) -> Run:
        return self.method, self.seed


@dataclass(frozen=True)
class RunFiles(OfRun):
    """The files of a run."""

    metrics: str
    train_predictions: str  # of training images that the run did not learn from
    predictions: str = ""  # of the images that are evaluated
    model: str = ""  # folder


def read_evaluated_images(images_path: str) -> tuple[pa.Table, list[str]]:
    """Read the test split of an IMAGES table, and the C class names.

    Where it is empty, all images are evaluated, without their labels.
    """
    table = tables.read(images_path)
    classnames = tables.read_metadata(images_path, IndexMetadata).classnames
    tests = table.filter(pc.equal(table["split"], "test"))
    if len(tests):
        return tests, classnames
    unlabelled = table.drop_columns([*tables.LABEL_COLUMNS])
    # The columns that are missing become null.
    return pa.concat_tables(
        [tests, unlabelled], promote_options="default"
    ), classnames


def write_run(
    images: pa.Table,
    classnames: list[str],
    ranked: Ints,
    held_out: HeldOut,
    flags: Sequence[str],
    dataset: str,
    run: RunFiles,
) -> None:
    """Write PREDICTIONS, metrics, and TRAIN_PREDICTIONS of a run.

    Images are those of `read_evaluated_images`, with their best classes [N, K], best first.
    Training images that were held out come as ids and classes. Flags are keys of `FLAGS`. Without
    labels of the images, the metrics have no figures.
    """
    classes = ClassesMetadata(classnames)
    ids, predicted = held_out
    columns = {"image_id": ids, "prediction": np.asarray(predicted, np.int32)}
    tables.write(run.train_predictions, columns, tables.TRAIN_PREDICTIONS, classes)
    columns = {
        "image_id": images["image_id"],
        "label": images["label"],
        "prediction": ranked[:, 0],
    }
    tables.write(run.predictions, columns, tables.PREDICTIONS, classes)
    metrics: dict[str, Any] = {
        "dataset": dataset,
        "method": run.method,
        "seed": run.seed,
        "flags": [*flags],
        "images": len(images),
        **dict.fromkeys(FIGURES),
    }
    if images["label"].null_count:
        log.info("No labels to test with in %s: predictions only.", dataset)
    else:
        labels = images["label"].to_numpy()
        is_right = ranked == labels[:, None]
        recalls = [is_right[labels == c, 0].mean() for c in np.unique(labels)]
        metrics["acc1"] = float(is_right[:, 0].mean())
        metrics["acc5"] = float(is_right.any(axis=1).mean())
        metrics["mean_per_class_recall"] = float(np.mean(recalls))
        log.info("%s, %s, seed %d: acc1 %.4f", dataset, *run.run, metrics["acc1"])
    write_json(run.metrics, metrics)


def predicted_classes(path: str, image_ids: pa.ChunkedArray) -> Ints:
    """Return the predictions [N] of images in a file of a run, MISSING where it has none."""
    table = tables.read(path, ["image_id", "prediction"])
    rows = pc.index_in(image_ids, table["image_id"])
    classes = pc.fill_null(pc.take(table["prediction"], rows), MISSING)
    return np.asarray(classes.to_numpy(), np.int_)


def pool_seeds(predictions: Sequence[Ints], methods: Sequence[str]) -> list[Ints]:
    """Return predictions [N] of runs, each filled up by those of other seeds of its method.

    Seeds leave out different training images. Where an image is held out for several, the first
    other one counts.
    """
    pooled = []
    for classes, method in zip(predictions, methods, strict=True):
        for others, other_method in zip(predictions, methods, strict=True):
            if other_method == method:
                classes = np.where(classes == MISSING, others, classes)
        pooled.append(classes)
    return pooled


@dataclass(frozen=True)
class Selection(OfRun):
    """The model that was chosen for a dataset."""

    dataset: str
    reason: str
    # A row for each: its run and flags, and how votes compare it with the best without training.
    candidates: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class AuditedRun(OfRun):
    """The accuracy of a run that reads no label, by a person's answers, and its lead over each."""

    accuracy: Interval
    leads: list[Interval]  # R: its accuracy minus that of each run of the audit


@dataclass(frozen=True)
class Audit:
    """What a person's answers say of the runs of a dataset, of none without enough answers."""

    dataset: str
    split: str
    images: int  # number of images in the split from which images were drawn
    answered: int  # images of which a person knew the class, or that it is none
    # The verdict: the best run, and the runs that it decidedly beats.
    sentence: str
    runs: list[AuditedRun]  # the most accurate first

    def of(self, run: Run) -> AuditedRun | None:
        return next((each for each in self.runs if each.run == run), None)

    def lead(self, run: Run, other: Run) -> Interval | None:
        """Return the accuracy of a run minus that of another. None: either was not scored."""
        scored = self.of(run)
        others = [each.run for each in self.runs]
        return (
            scored.leads[others.index(other)]
            if scored and other in others
            else None
        )


def accuracy_by_answers(
    run: RunFiles, report: FusionReport | None, audit: Audit | None
) -> tuple[Interval | None, str]:
    """Return the accuracy of a run by a person's answers, and the command that asked for them.

    An audit comes first, and then the checks of `teach` about images that the run did not learn
    from, or of a classifier that `fuse_labels` made without the answer. None: the answers are too
    few.
    """
    if audit and (scored := audit.of(run.run)):
        return scored.accuracy, "audit"
    if report is None:
        return None, "teach"
    hits = [is_right for _, is_right in report.checks.get(run.method, [])]
    if not hits:
        ids = pa.chunked_array([report.checking], pa.string())
        predicted = predicted_classes(run.train_predictions, ids)
        hits = [
            report.classnames[label] == report.answers[name]
            for name, label in zip(report.checking, predicted, strict=True)
            if label != MISSING
        ]
    enough = len(hits) >= MIN_ANSWERS
    return (share_of_new(sum(hits), len(hits)) if enough else None), "teach"
