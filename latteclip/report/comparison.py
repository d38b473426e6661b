"""Methods compared on the images of a split, as small tables for templates: lists of dicts.

Letters: M methods, N images, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from latteclip.evaluate.metrics import recalls
from latteclip.evaluate.summary import summary
from latteclip.report import runs
from latteclip.report.runs import Floats, Ints

Row = dict[Any, Any]
BASELINE = "zero_shot"
METHODS = 8  # methods that are compared image by image
ROWS = 1000  # classes in a table


def headline(
    metrics: Sequence[Mapping[str, Any]], baseline: str, zero_shot: float | None
) -> list[Row]:
    """Return the rows of `summary`, with the accuracies of runs and the gain over zero-shot."""
    table = summary(metrics, baseline)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    for row in rows:
        row["flags"] = row["flags"].split()
        seeds = [run["acc1"] for run in metrics if run["method"] == row["method"]]
        row["each"] = [100 * value for value in seeds if value is not None]
        row["gain"] = difference(row["acc1_mean"], zero_shot)
    return rows


def difference(value: float | None, base: float | None) -> float | None:
    """Return a value minus another one, None where either is unknown."""
    return None if value is None or base is None else value - base


def class_changes(
    labels: Ints, before: Ints, after: Ints, classnames: Sequence[str]
) -> list[Row]:
    """Return recalls of classes in percent by labels and predictions [N], largest gain first."""
    n_classes = len(classnames)
    old, counts = recalls(before, labels, n_classes)
    new, _ = recalls(after, labels, n_classes)
    columns = {
        "classname": classnames,
        "images": counts,
        "before": 100 * old,
        "after": 100 * new,
        "change": 100 * new - 100 * old,
    }
    table = pd.DataFrame(columns)[counts > 0]
    table = table.sort_values(["change", "classname"], ascending=[False, True])
    return table.to_dict("records")


def confusion(labels: Ints, predictions: Ints, classes: list[int]) -> Floats:
    """Return the share of each of K classes (row) that is predicted as each (column) [K, K]."""
    inside = np.isin(labels, classes)
    shares = pd.crosstab(labels[inside], predictions[inside], normalize="index")
    return shares.reindex(index=classes, columns=classes, fill_value=0.0).to_numpy()


def pairs(first: Ints, second: Ints) -> pd.DataFrame:
    """Count images [N] by pairs of different classes, with their `share` of the first class."""
    counts = pd.DataFrame({"first": first, "second": second}).value_counts(sort=False)
    table = counts.sort_index().reset_index(name="images")
    of_first = table.groupby("first")["images"].transform("sum")
    table["share"] = 100 * (table["images"] / of_first)
    return table[table["first"] != table["second"]]


def worst_pairs(labels: Ints, before: Ints, after: Ints, n: int) -> list[Row]:
    """Return the n largest confusions of a model, with the pretrained model's `share_before`."""
    worst = pairs(labels, after)
    worst = worst.sort_values("share", ascending=False, kind="stable").head(n)
    old = pairs(labels, before)
    merged = worst.merge(old, "left", on=["first", "second"], suffixes=("", "_before"))
    return merged.fillna(0.0).to_dict("records")


def classes_of(pairs: Sequence[Row], n: int) -> list[int]:
    """Return the classes of the first pairs, at most n, side by side where they are confused."""
    chosen: list[int] = []
    for pair in pairs:
        new = [c for c in (pair["first"], pair["second"]) if c not in chosen]
        if len(chosen) + len(new) <= n:
            chosen += new
    return chosen


def changed_images(
    labels: Ints, before: Ints, after: Ints, margins: Floats, *, improved: bool, n: int
) -> list[int]:
    """Return the n surest images [N] that a model corrects, or breaks. Classes take turns."""
    is_right = after == labels
    was_right = before == labels
    if improved:
        changed = np.flatnonzero(is_right & ~was_right)
    else:
        changed = np.flatnonzero(was_right & ~is_right)
    order = changed[np.argsort(-margins[changed], kind="stable")]
    return class_balanced_top(order, labels, n)


def class_balanced_top(order: Ints, classes: Ints, n: int) -> list[int]:
    """Return the first n images of an order, of which classes [N] take turns."""
    turns = pd.Series(order).groupby(classes[order]).cumcount().to_numpy()
    return [int(i) for i in order[np.argsort(turns, kind="stable")[:n]]]


@dataclass(frozen=True)
class MethodPredictions:
    """The predictions of some methods for the N images of a split."""

    methods: list[str]  # M, the first one is zero-shot, where it was run
    labels: Ints  # [M, N]
    main: str  # the method of the run that the page is about
    runner_up: Ints  # [N], the second best classes by the main run
    margins: Floats  # [N], by how much the best class beats the second
    total: int  # methods that were run

    @property
    def after(self) -> Ints:
        return np.asarray(self.labels[self.methods.index(self.main)])

    @cached_property
    def n_classes(self) -> Ints:
        """Return how many different classes each image gets [N]."""
        ordered = np.sort(self.labels, axis=0)
        return np.asarray(1 + (np.diff(ordered, axis=0) != 0).sum(axis=0))


def read_method_predictions(
    run_files: Sequence[runs.RunTables], main: runs.RunTables
) -> MethodPredictions:
    """Read the predictions of the main run, and of the first run of each other method."""
    paths = {main.method: main.predictions}
    for run in sorted(run_files, key=lambda run: run.seed):
        paths.setdefault(run.method, run.predictions)
    order = dict.fromkeys(run.method for run in run_files)
    base = BASELINE if BASELINE in paths else next(iter(order))
    names = list(dict.fromkeys([base, main.method, *order]))[:METHODS]
    labels = np.stack([runs.read_predictions(paths[name]) for name in names])
    margins = runs.read_margins(main.predictions)
    return MethodPredictions(names, labels, main.method, *margins, len(paths))


def methods_used(predictions: MethodPredictions) -> dict[str, Row]:
    """Return how many classes each method uses, and the percentage of images that it changes."""
    base = predictions.labels[0]
    used = {}
    for name, labels in zip(predictions.methods, predictions.labels, strict=True):
        changed = float((labels != base).mean())
        used[name] = {"classes": len(np.unique(labels)), "changed": 100 * changed}
    return used


def class_sizes(predictions: MethodPredictions, labels: Ints | None, c: int) -> list[Row]:
    """Return the sizes of the C classes by each method, the ROWS largest first."""
    sizes = [np.bincount(predicted, minlength=c) for predicted in predictions.labels]
    before = sizes[0]
    after = sizes[predictions.methods.index(predictions.main)]
    columns = {
        "label": range(c),
        "before": before,
        "after": after,
        "true": None if labels is None else np.bincount(labels, minlength=c),
        "each": np.stack(sizes, axis=1).tolist(),
    }
    largest = np.lexsort((-before, -after))[:ROWS]
    return pd.DataFrame(columns).take(largest).to_dict("records")


def disputed(predictions: MethodPredictions, n: int) -> list[int]:
    """Return the n images with the most different classes, then margins. Classes take turns."""
    order = np.lexsort((-predictions.margins, -predictions.n_classes))
    return class_balanced_top(order[predictions.n_classes[order] > 1], predictions.after, n)


def sides(predictions: MethodPredictions, i: int) -> list[tuple[int, list[str]]]:
    """Return each class that an image gets with the methods that predict it, most methods first."""
    by_class: dict[int, list[str]] = {}
    for name, label in zip(
        predictions.methods, predictions.labels[:, i].tolist(), strict=True
    ):
        by_class.setdefault(label, []).append(name)
    return sorted(by_class.items(), key=lambda side: -len(side[1]))


def ends_of_classes(predictions: MethodPredictions, budget: int, most: int) -> list[Row]:
    """Return the images of each predicted class with the largest and the smallest margins.

    At most `budget` images are returned, and `most` of a class at each end. Of too many classes,
    the most disputed are returned.
    """
    order = np.argsort(-predictions.margins, kind="stable")
    classes = pd.Series(order).groupby(predictions.after[order])
    sizes = classes.size()
    is_disputed = pd.Series(predictions.n_classes > 1)
    n_disputed = is_disputed.groupby(predictions.after).sum()
    n_at_end = int(np.clip(budget // (2 * len(sizes)), 1, most))
    n_classes = budget // (2 * n_at_end)
    by_dispute = np.lexsort((-sizes, -n_disputed))
    chosen = sizes.index[by_dispute[:n_classes]]
    rows = []
    for label in sorted(chosen.tolist()):
        members = classes.get_group(label).tolist()
        rest = members[n_at_end:]
        row = {
            "label": label,
            "images": len(members),
            "disputed": int(n_disputed[label]),
            "surest": members[:n_at_end],
            "least": rest[-n_at_end:][::-1],
        }
        rows.append(row)
    return rows
