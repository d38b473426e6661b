"""Methods compared on the images of a split: numbers in, small tables and charts out.

Tables are lists of dicts, as templates read them. Charts are drawn by Matplotlib as SVG that takes
its colours and fonts from the page: colours are written as placeholders and replaced by CSS
variables, so that one drawing serves light and dark.

Letters: M methods, N images, C classes, S seeds, T points of a line, B bins.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latteclip.clip.classifier import load_classifier
from latteclip.evaluate.metrics import recalls
from latteclip.evaluate.summary import known, summary
from latteclip.report import runs
from latteclip.report.runs import Floats, Ints

Row = dict[str, Any]
BASELINE = "zero_shot"
METHODS = 8  # methods that are compared image by image
ROWS = 1000  # classes in a table
VISIBLE = 0.05  # points: a smaller change is written as none
CURVES, POINTS = 6, 120  # methods in a chart of the training, and points of a line
BIASES = 20  # classes in the chart of biases

# --- accuracy ------------------------------------------------------------------------------------


def headline(
    metrics: Sequence[Mapping[str, Any]], baseline: str, zero_shot: float | None
) -> list[Row]:
    """Return one row per method, in percent and points, in the order of the runs.

    Args:
        metrics: of every run of one dataset.
        baseline: the method of `over_baseline`.
        zero_shot: acc1 of the pretrained model as a fraction.
    """
    rows = []
    for values in summary(pd.DataFrame(list(metrics)), baseline).to_dict("records"):
        seeds = [run["acc1"] for run in metrics if run["method"] == values["method"]]
        acc1 = known(values["acc1_mean"])
        rows.append(
            {
                "method": values["method"],
                "marks": values["marks"].split(),
                "seeds": values["seeds"],
                "acc1": acc1,
                "spread": known(values["acc1_std"]),
                "each": [100 * value for value in seeds if value is not None],
                "gain": None if acc1 is None or zero_shot is None else acc1 - 100 * zero_shot,
                "over_baseline": known(values["acc1_gain"]),
                "acc5": known(values["acc5_mean"]),
                "recall": known(values["mean_per_class_recall"]),
            }
        )
    return rows


def class_changes(labels: Ints, before: Ints, after: Ints, classnames: Sequence[str]) -> list[Row]:
    """Return the recall of each class with images in percent, the largest gain first.

    Args:
        labels: [N].
        before: [N] predictions of the pretrained model.
        after: [N] predictions of a model.
        classnames: of the C classes.
    """
    (old, counts), (new, _) = (recalls(x, labels, len(classnames)) for x in (before, after))
    rows = [
        {
            "classname": classnames[i],
            "images": int(counts[i]),
            "before": 100 * float(old[i]),
            "after": 100 * float(new[i]),
            "change": 100 * float(new[i]) - 100 * float(old[i]),
        }
        for i in np.flatnonzero(counts)
    ]
    return sorted(rows, key=lambda row: (-row["change"], row["classname"]))


def confusion(labels: Ints, predictions: Ints, classes: Sequence[int]) -> Floats:
    """Return the share of each of K classes (row) that is predicted as each (column) [K, K].

    The row of a class without images is zero. Labels and predictions are [N].
    """
    k = len(classes)
    place = np.full(1 + max(labels.max(), predictions.max(), *classes), -1)
    place[list(classes)] = np.arange(k)
    rows, columns = place[labels], place[predictions]
    inside = (rows >= 0) & (columns >= 0)
    counts = np.bincount(rows[inside] * k + columns[inside], minlength=k * k)
    images = np.bincount(rows[rows >= 0], minlength=k)[:, None]
    return np.asarray(counts.reshape(k, k) / np.maximum(images, 1))


def worst_pairs(labels: Ints, before: Ints, after: Ints, c: int, n: int) -> list[Row]:
    """Return the n largest confusions of a model, in percent of the true class.

    Pairs that do not occur take no memory. Arrays are [N], as for `class_changes`, of C classes.
    """
    sizes = np.bincount(labels, minlength=c)
    pairs, counts = np.unique(labels.astype(np.int64) * c + after, return_counts=True)
    true, predicted = np.divmod(pairs, c)
    shares = counts / sizes[true]
    wrong = np.flatnonzero(true != predicted)
    rows = []
    for i in wrong[np.argsort(-shares[wrong], kind="stable")[:n]]:
        was = ((labels == true[i]) & (before == predicted[i])).sum() / sizes[true[i]]
        pair = {"true": int(true[i]), "predicted": int(predicted[i])}
        rows.append({**pair, "before": 100 * float(was), "after": 100 * float(shares[i])})
    return rows


def classes_of(pairs: Sequence[Row], n: int) -> list[int]:
    """Return the classes of the first pairs, at most n, side by side where they are confused."""
    chosen: list[int] = []
    for pair in pairs:
        new = [c for c in (pair["true"], pair["predicted"]) if c not in chosen]
        if len(chosen) + len(new) <= n:
            chosen += new
    return chosen


def changed_images(
    labels: Ints, before: Ints, after: Ints, margins: Floats, *, improved: bool, n: int
) -> list[int]:
    """Return the n images with the largest margin that a model corrects, or breaks.

    Classes take turns. Arrays are [N]; margins are those over the second best class.
    """
    right, was = after == labels, before == labels
    changed = np.flatnonzero((right & ~was) if improved else (~right & was))
    order = changed[np.argsort(-margins[changed], kind="stable")]
    return class_balanced_top(order, labels, n)


def class_balanced_top(order: Ints, classes: Ints, n: int) -> list[int]:
    """Return the first n images of an order, none of a class before all others had as many.

    Args:
        order: numbers of images, the best first.
        classes: [N] of all images.
        n: how many at most.
    """
    of_order = classes[order]
    by_class = np.argsort(of_order, kind="stable")
    counts = np.bincount(of_order)
    turns = np.empty(len(order), np.int_)
    turns[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return [int(i) for i in order[np.argsort(turns, kind="stable")[:n]]]


class Reliability(NamedTuple):
    """Images in bins of confidence."""

    edges: Floats  # [B + 1]
    shares: Floats  # [B], of all images
    accuracy: Floats | None  # [B], NaN where a bin is empty; None without labels
    surest: Floats | None  # accuracy among the surest 1, 2, ... 100 percent


def reliability(confidence: Floats, correct: Ints | None, bins: int = 10) -> Reliability:
    """Return how often pseudo-labels are right, by their confidence.

    Args:
        confidence: [N], between 0 and 1.
        correct: [N], 1 where the pseudo-label is the label; None where labels are not known.
        bins: of equal width.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    shares = counts / max(1, len(confidence))
    if correct is None:
        return Reliability(edges, shares, None, None)
    hits = np.bincount(place, weights=correct, minlength=bins)
    accuracy = np.divide(hits, counts, out=np.full(bins, np.nan), where=counts > 0)
    running = np.cumsum(correct[np.argsort(-confidence, kind="stable")])  # [N]
    ends = np.ceil(np.arange(1, 101) / 100 * len(confidence)).astype(int)
    return Reliability(edges, shares, accuracy, running[ends - 1] / ends)


# --- methods without labels ----------------------------------------------------------------------


@dataclass(frozen=True)
class MethodPredictions:
    """The predictions of some methods for the N images of a split."""

    methods: list[str]  # M
    labels: Ints  # [M, N]
    main: int  # the method of the run that the page is about
    base: int  # the method that it is compared with: zero-shot, where it was run
    of_main: runs.RunPredictions
    total: int  # methods that were run

    @property
    def before(self) -> Ints:
        return np.asarray(self.labels[self.base])

    @property
    def after(self) -> Ints:
        return np.asarray(self.labels[self.main])

    @property
    def n_classes(self) -> Ints:
        """Return how many different classes each image gets [N]."""
        ordered = np.sort(self.labels, axis=0)
        return np.asarray(1 + (np.diff(ordered, axis=0) != 0).sum(axis=0))


def read_method_predictions(
    run_files: Sequence[runs.RunFiles], main: runs.RunFiles
) -> MethodPredictions:
    """Read the predictions of the main run, and of the first run of each other method."""
    paths: dict[str, str] = {}
    for run in sorted(run_files, key=lambda run: run.seed):
        paths.setdefault(run.method, run.predictions)
    paths[main.method] = main.predictions
    order = dict.fromkeys(run.method for run in run_files)
    base = BASELINE if BASELINE in paths else next(iter(order))
    names = list(dict.fromkeys([base, main.method, *order]))[:METHODS]
    labels = np.stack([runs.read_labels(paths[name]) for name in names])
    of_main = runs.read_predictions(main.predictions)
    return MethodPredictions(names, labels, names.index(main.method), 0, of_main, len(paths))


def methods_used(found: MethodPredictions) -> dict[str, Row]:
    """Return how many classes each method uses, and the percentage of images that it changes."""
    return {
        name: {
            "classes": len(np.unique(labels)),
            "changed": 100 * float((labels != found.before).mean()),
        }
        for name, labels in zip(found.methods, found.labels, strict=True)
    }


def class_sizes(found: MethodPredictions, labels: Ints | None, c: int) -> list[Row]:
    """Return the sizes of the C classes by each method, the largest first; at most ROWS."""
    counts = np.stack([np.bincount(one, minlength=c) for one in found.labels])  # [M, C]
    true = None if labels is None else np.bincount(labels, minlength=c)
    before, after = counts[found.base], counts[found.main]
    return [
        {
            "label": int(label),
            "true": None if true is None else int(true[label]),
            "before": int(before[label]),
            "after": int(after[label]),
            "each": counts[:, label].tolist(),
        }
        for label in np.lexsort((-before, -after))[:ROWS]
    ]


def shifts(before: Ints, after: Ints, c: int, n: int) -> list[Row]:
    """Return the n most frequent differences between two methods [N], of C classes."""
    differ = before != after
    pairs, counts = np.unique(
        before[differ].astype(np.int64) * c + after[differ], return_counts=True
    )
    sizes = np.bincount(before, minlength=c)
    return [
        {
            "before": int(pairs[i] // c),
            "after": int(pairs[i] % c),
            "images": int(counts[i]),
            "share": 100 * float(counts[i] / sizes[pairs[i] // c]),  # percent of the first class
        }
        for i in np.argsort(-counts, kind="stable")[:n]
    ]


def disputed(found: MethodPredictions, n: int) -> list[int]:
    """Return the n images with the most different classes, then with the largest margin.

    Classes take turns.
    """
    order = np.lexsort((-found.of_main.margins, -found.n_classes))
    return class_balanced_top(order[found.n_classes[order] > 1], found.after, n)


def sides(found: MethodPredictions, i: int) -> list[tuple[int, list[str]]]:
    """Return each class that an image gets with the methods that predict it, most methods first."""
    by_class: dict[int, list[str]] = {}
    for name, label in zip(found.methods, found.labels[:, i].tolist(), strict=True):
        by_class.setdefault(label, []).append(name)
    return sorted(by_class.items(), key=lambda side: -len(side[1]))


def ends_of_classes(found: MethodPredictions, budget: int, most: int) -> list[Row]:
    """Return the images of each predicted class with the largest and the smallest margins.

    Args:
        found: predictions for N images.
        budget: images in all; where classes are too many for it, those come with whose images
            other methods disagree most.
        most: images of a class at each end.
    """
    margins, labels = found.of_main.margins, found.after
    order = np.lexsort((-margins, labels))
    sizes = np.bincount(labels)
    against = np.bincount(labels[found.n_classes > 1], minlength=len(sizes))
    starts = np.cumsum(sizes) - sizes
    present = np.flatnonzero(sizes)
    per = int(np.clip(budget // (2 * len(present)), 1, most))
    chosen = present[np.lexsort((-sizes[present], -against[present]))][: budget // (2 * per)]
    rows = []
    for label in sorted(chosen.tolist()):
        of_class = order[starts[label] : starts[label] + sizes[label]].tolist()
        row = {"label": label, "images": len(of_class), "disputed": int(against[label])}
        rows.append({**row, "surest": of_class[:per], "least": of_class[per:][-per:][::-1]})
    return rows


# --- drawing -------------------------------------------------------------------------------------

SIZE = (4.0, 2.6)  # inches of 72 units: about the width of a phone
MAX_NAME = 22  # characters of a class name beside its bar
# Colour and line of each series, the same in all charts, distinct without colour too.
SERIES = [(f"#5e71{i:02x}", f"var(--series-{i})") for i in range(1, 7)]
DASHES = ["solid", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (8, 2))]
INK, MUTED, LINE = "#5e71f1", "#5e71f2", "#5e71f3"
VARIABLES = dict(SERIES) | {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "font.size": 10.5, "text.color": INK, "lines.linewidth": 1.7},
    **{"axes.edgecolor": LINE, "axes.labelcolor": MUTED, "axes.labelsize": 10},
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True},
    **{"grid.color": LINE, "grid.linewidth": 0.7, "xtick.color": MUTED, "ytick.color": MUTED},
    **{"xtick.labelsize": 10, "ytick.labelsize": 10, "xtick.major.size": 3, "ytick.major.size": 0},
}


class Line(NamedTuple):
    """A line of a chart: runs [S][T] over x [T], drawn as their mean in the band they span."""

    name: str
    x: Floats
    runs: Sequence[Floats]
    series: int  # 0 to 5: which colour and dash


def line_chart(
    title: str, lines: Sequence[Line], *, x_label: str, note: str = "", legend: bool = False
) -> Row:
    """Draw lines over one axis; the alternative text names where each begins and ends."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(x_label)
        for line in lines:
            values = np.stack([run[: len(line.x)] for run in line.runs])  # [S, T]
            colour, dash = SERIES[line.series][0], DASHES[line.series]
            axes.plot(line.x, values.mean(axis=0), color=colour, linestyle=dash)
            if len(values) > 1:
                low, high = values.min(axis=0), values.max(axis=0)
                axes.fill_between(line.x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.margins(x=0.01)
        axes.set_xlim(left=0)
        ends = "; ".join(
            f"{line.name} from {np.mean([run[0] for run in line.runs]):.3g} "
            f"to {np.mean([run[-1] for run in line.runs]):.3g}"
            for line in lines
        )
        svg = _svg(figure, title, f"{title} by {x_label}: {ends}.")
    names = [(line.name, line.series) for line in lines] if legend else []
    return {"title": title, "svg": svg, "note": note, "legend": names}


def bar_chart(
    title: str,
    edges: Floats,
    shares: Floats,
    accuracy: Floats | None,
    *,
    x_label: str,
    note: str = "",
) -> Row:
    """Draw shares of images in bins [B] as bars and the accuracy in each as points, in percent."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(x_label)
        middles = (edges[:-1] + edges[1:]) / 2
        axes.bar(middles, 100 * shares, width=0.9 * np.diff(edges), color=LINE)
        if accuracy is not None:
            axes.plot([0, 1], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
            filled = ~np.isnan(accuracy)
            axes.plot(middles[filled], 100 * accuracy[filled], color=SERIES[0][0], marker="o")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0, top=100 if accuracy is not None else None)
        axes.yaxis.set_major_formatter("{x:.0f} %")
        values = 100 * (shares if accuracy is None else accuracy)
        bins = "; ".join(
            f"{low:.1f} to {high:.1f}: {value:.0f} %"
            for low, high, value in zip(edges[:-1], edges[1:], values, strict=True)
            if not np.isnan(value)
        )
        what = "share of the images" if accuracy is None else "accuracy"
        svg = _svg(figure, title, f"{title}, {what} by {x_label}: {bins}.")
    return {"title": title, "svg": svg, "note": note, "legend": []}


def class_chart(
    title: str, names: Sequence[str], values: Floats, *, x_label: str, note: str = ""
) -> Row:
    """Draw a bar for each class, from top to bottom; to the left where its value is negative."""
    rows = np.arange(len(names))
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axes = _axes(x_label, height=0.9 + 0.22 * len(names))
        colours = np.where(values < 0, SERIES[1][0], SERIES[0][0])
        axes.barh(rows, values, height=0.7, color=colours.tolist())
        axes.axvline(0, color=MUTED, linewidth=0.8)
        short = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in names]
        axes.set_yticks(rows, short, parse_math=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        bars = "; ".join(f"{name}: {value:+.2f}" for name, value in zip(names, values, strict=True))
        svg = _svg(figure, title, f"{title}, {x_label}: {bars}.")
    return {"title": title, "svg": svg, "note": note, "legend": []}


def _axes(x_label: str, height: float = SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    return figure, axes


def _svg(figure: Figure, title: str, description: str) -> Markup:
    """Return the <svg> element with placeholders replaced, as an image with a description."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title}):  # ids that repeat on no other chart nor vary
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda m: m[0] if m[1] in used else "", text)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for side in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
    label = f'<svg class="chart" role="img" aria-label="{escape(description)}"'
    return Markup(text.replace("<svg", label, 1))  # matplotlib escapes what it writes


# --- charts of a page ----------------------------------------------------------------------------


def training_charts(run_files: Sequence[runs.RunFiles], main: str) -> list[Row]:
    """Draw the curves of the trained methods, the main one first."""
    names = list(dict.fromkeys(run.method for run in run_files if run.history))
    names.sort(key=lambda name: name != main)
    curves = {name: _curves(run_files, name) for name in names[:CURVES]}
    more = f" The first {CURVES} of {len(names)} methods." if len(names) > CURVES else ""
    charts = []
    for column, title, note in (
        ("loss", "Loss", "The training objective, on the training images."),
        ("agreement", "Agreement with the labels", "Share of predictions equal to their label."),
        ("class_balance", "Class balance", "1: all classes are predicted equally often."),
    ):
        lines = _lines((name, column, curves[name]) for name in curves)
        if lines:
            charts.append(
                line_chart(title, lines, x_label="epoch", note=f"{note}{more}", legend=True)
            )
    return charts


def latteclip_charts(run_files: Sequence[runs.RunFiles], method: str) -> list[Row]:
    """Draw what only LatteCLIP's training has: two labels an image, mixed texts, prototypes."""
    curves = _curves(run_files, method)
    charts = []
    for title, columns, note in (
        (
            "Loss by kind of label",
            {
                "loss_zero_shot": "pretrained model's label",
                "loss_finetuned": "fine-tuned model's label",
            },
            "Each image has a label by the pretrained model and one by the model in training.",
        ),
        (
            "Weights of the descriptions",
            {"weight_class": "class name", "weight_image": "image", "weight_group": "group"},
            "The weight of each description in the text that an image is compared with.",
        ),
        (
            "Drift of the prototypes",
            {"prototype_drift": "prototypes"},
            "The prototype of a class starts at the text of its name. The drift is 1 minus the "
            "cosine to the start, as the mean over classes.",
        ),
    ):
        lines = _lines((name, column, curves) for column, name in columns.items())
        if len(lines) > 1 or (len(columns) == 1 and lines):
            charts.append(line_chart(title, lines, x_label="epoch", note=note, legend=True))
    return charts


def _curves(run_files: Sequence[runs.RunFiles], method: str) -> list[dict[str, Floats]]:
    """Read the histories of a method's runs."""
    paths = [run.history for run in run_files if run.method == method and run.history]
    return [curves for path in paths if (curves := runs.read_curves(path, POINTS))]


def _lines(wanted: Iterable[tuple[str, str, Sequence[dict[str, Floats]]]]) -> list[Line]:
    """Return a line for each name, column and histories, over the epochs that all seeds reached."""
    lines = []
    for series, (name, column, curves) in enumerate(wanted):
        having = [curve for curve in curves if column in curve and curve[column].any()]
        if having:
            points = min(len(curve["epoch"]) for curve in having)
            values = [curve[column] for curve in having]
            lines.append(Line(name, having[0]["epoch"][:points], values, series))
    return lines


def bias_chart(path: str) -> Row:
    """Draw the bias that calibration subtracts from each class, in logits.

    Biases are relative to their mean, which changes no prediction. Of many classes, the BIASES
    largest are drawn, either way.

    Args:
        path: the calibrated zero-shot classifier.

    Raises:
        UserError: it is missing or broken.
    """
    classifier, described = load_classifier(path)
    biases = -described["logit_scale"] * classifier.bias.double().numpy()  # [C]
    biases -= biases.mean()
    order = np.argsort(-np.abs(biases), kind="stable")[:BIASES]
    order = order[np.argsort(-biases[order], kind="stable")]
    left_out = f" The {len(order)} largest of {len(biases)}." if len(order) < len(biases) else ""
    return class_chart(
        "Classes that zero-shot CLIP favours",
        [described["classnames"][c] for c in order],
        biases[order],
        x_label="score above the mean of all classes",
        note="The mean score of a class over the training images, whatever they show. "
        f"zero_shot_calibrated subtracts it.{left_out}",
    )


def pseudo_label_charts(train: runs.Split) -> Row:
    """Draw the confidence of the pseudo-labels of the training images, and their accuracy."""
    correct = None
    if train.labels is not None:
        correct = (train.pseudo_labels == train.labels).astype(np.int_)
    found = reliability(train.confidence, correct)
    charts = [
        bar_chart(
            "Confidence" if correct is None else "Accuracy against confidence",
            *(found.edges, found.shares, found.accuracy),
            x_label="confidence of the pseudo-label",
            note="Bars: share of the training images."
            + ("" if correct is None else " Dotted line: accuracy equal to the confidence."),
        )
    ]
    if found.surest is not None:
        line = Line("accuracy", np.linspace(1, 100, 100), [100 * found.surest], 0)
        charts.append(
            line_chart(
                "Accuracy of the most confident",
                [line],
                x_label="percent of the pseudo-labels, by confidence",
                note="Accuracy of the pseudo-labels among the most confident ones, in percent.",
            )
        )
    return {
        "charts": charts,
        "accuracy": None if correct is None else 100 * float(correct.mean()),
        "confidence": 100 * float(train.confidence.mean()),
        "classes": len(np.unique(train.pseudo_labels)),
    }
