"""Methods compared on the images of a split: numbers in, small tables and charts out.

Letters: M methods, N images, C classes, S seeds, T points of a line, B bins.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latteclip.clip.classifier import load_classifier
from latteclip.core import tables
from latteclip.evaluate.metrics import recalls
from latteclip.evaluate.summary import known, summary
from latteclip.report import runs
from latteclip.report.runs import Floats, Ints

VISIBLE = 0.05  # points: a smaller change is written as none


@dataclass(frozen=True)
class Row:
    """A method in the table of accuracies, in percent and points; None where not known."""

    method: str
    marks: list[str]
    seeds: int
    acc1: float | None
    spread: float | None  # sample standard deviation over seeds
    each: list[float]  # acc1 of every seed
    gain: float | None  # over zero-shot
    over_baseline: float | None  # over the method that the run's configuration names
    acc5: float | None
    recall: float | None  # mean over classes


def headline(
    runs: Sequence[Mapping[str, Any]], baseline: str, zero_shot: float | None
) -> list[Row]:
    """One row per method, in the order of the runs.

    Args:
        runs: the metrics of every run of one dataset.
        baseline: the method of `over_baseline`.
        zero_shot: acc1 of the pretrained model as a fraction.
    """
    table = summary(pd.DataFrame(list(runs)), baseline)
    rows = []
    for values in table.to_dict("records"):
        own = [run["acc1"] for run in runs if run["method"] == values["method"]]
        acc1 = known(values["acc1_mean"])
        gain = None if acc1 is None or zero_shot is None else acc1 - 100 * zero_shot
        rows.append(
            Row(
                method=values["method"],
                marks=values["marks"].split(),
                seeds=values["seeds"],
                acc1=acc1,
                spread=known(values["acc1_std"]),
                each=[100 * value for value in own if value is not None],
                gain=gain,
                over_baseline=known(values["acc1_gain"]),
                acc5=known(values["acc5_mean"]),
                recall=known(values["mean_per_class_recall"]),
            )
        )
    return rows


@dataclass(frozen=True)
class ClassChange:
    """Recall of one class in percent, by the pretrained model and by another."""

    classname: str
    images: int
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


def class_changes(
    labels: Ints, before: Ints, after: Ints, classnames: Sequence[str]
) -> list[ClassChange]:
    """Classes with test images, those that gained most first.

    Args:
        labels: [N].
        before: [N] predictions of the pretrained model.
        after: [N] predictions of a model.
        classnames: of the C classes.
    """
    c = len(classnames)
    old, counts = recalls(before, labels, c)
    new, _ = recalls(after, labels, c)
    changes = [
        ClassChange(classnames[i], int(counts[i]), 100 * float(old[i]), 100 * float(new[i]))
        for i in np.flatnonzero(counts)
    ]
    return sorted(changes, key=lambda row: (-row.change, row.classname))


@dataclass(frozen=True)
class Pair:
    """Images of one class that are taken for another, in percent of the class."""

    true: int
    predicted: int
    before: float
    after: float


def confusion(labels: Ints, predictions: Ints, classes: Sequence[int]) -> Floats:
    """Share of the images of each of K classes (row) that are given each of them (column) [K, K].

    Args:
        labels: [N].
        predictions: [N].
        classes: K classes; the row of one without images is zero.
    """
    k = len(classes)
    place = np.full(1 + max(labels.max(), predictions.max(), *classes), -1)
    place[list(classes)] = np.arange(k)
    rows, columns = place[labels], place[predictions]
    inside = (rows >= 0) & (columns >= 0)
    counts = np.bincount(rows[inside] * k + columns[inside], minlength=k * k)
    images = np.bincount(rows[rows >= 0], minlength=k)[:, None]
    shares: Floats = counts.reshape(k, k) / np.maximum(images, 1)
    return shares


def worst_pairs(labels: Ints, before: Ints, after: Ints, c: int, n: int) -> list[Pair]:
    """The n largest confusions of a model; pairs that do not occur take no memory.

    Args:
        labels: [N].
        before: [N] predictions of the pretrained model.
        after: [N] predictions of a model.
        c: number of classes.
        n: how many at most.
    """
    sizes = np.bincount(labels, minlength=c)
    pairs, counts = np.unique(labels.astype(np.int64) * c + after, return_counts=True)
    true, predicted = np.divmod(pairs, c)
    shares = counts / sizes[true]
    wrong = np.flatnonzero(true != predicted)
    found = []
    for i in wrong[np.argsort(-shares[wrong], kind="stable")[:n]]:
        was = ((labels == true[i]) & (before == predicted[i])).sum() / sizes[true[i]]
        found.append(
            Pair(int(true[i]), int(predicted[i]), 100 * float(was), 100 * float(shares[i]))
        )
    return found


def classes_of(pairs: Sequence[Pair], n: int) -> list[int]:
    """The classes of the first pairs, at most n, neighbours where they are confused."""
    chosen: list[int] = []
    for pair in pairs:
        new = [c for c in (pair.true, pair.predicted) if c not in chosen]
        if len(chosen) + len(new) <= n:
            chosen += new
    return chosen


@dataclass(frozen=True)
class Reliability:
    """Images in bins of confidence."""

    edges: Floats  # [B + 1]
    shares: Floats  # [B], of all images
    accuracy: Floats | None  # [B], NaN where a bin is empty; None without labels
    kept: Floats | None  # accuracy among the surest 1, 2, ... 100 percent


def reliability(confidence: Floats, correct: Ints | None, bins: int = 10) -> Reliability:
    """How often pseudo-labels are right, by their confidence.

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


@dataclass(frozen=True)
class Moved:
    """A test image whose prediction changed between right and wrong."""

    index: int
    before: int
    after: int


def moved(
    labels: Ints, before: Ints, after: Ints, margins: Floats, *, improved: bool, n: int
) -> list[Moved]:
    """The n clearest images that a model puts right, or wrong.

    Clearest is the largest margin over the second best class. No two are of the same class before
    the class is seen in all others.

    Args:
        labels: [N].
        before: [N] predictions of the pretrained model.
        after: [N] predictions of a model.
        margins: [N] of those over the second best class.
        improved: right after and wrong before, or the other way round.
        n: how many at most.
    """
    right, was = after == labels, before == labels
    changed = np.flatnonzero((right & ~was) if improved else (~right & was))
    order = changed[np.argsort(-margins[changed], kind="stable")]
    return [Moved(i, int(before[i]), int(after[i])) for i in taking_turns(order, labels, n)]


def taking_turns(order: Ints, classes: Ints, n: int) -> list[int]:
    """The first n images of an order, none of a class before all others had as many.

    Args:
        order: numbers of images, the best first.
        classes: [N] of all images.
        n: how many at most.
    """
    own = classes[order]
    by_class = np.argsort(own, kind="stable")
    counts = np.bincount(own)
    turns = np.empty(len(order), np.int_)
    turns[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return [int(i) for i in order[np.argsort(turns, kind="stable")[:n]]]


@dataclass(frozen=True)
class CaptionStatistics:
    """Captions of one kind in numbers; shares in percent."""

    captions: int
    failed: int  # the model was not reached
    empty: int  # it wrote nothing
    distinct: int
    cut: float  # share that ended at the token limit
    words: float | None  # mean
    tokens: float | None  # mean
    names_class: float  # share of the texts that hold the name of any class
    names_pseudo_label: float | None  # share that holds the name of its pseudo-label
    names_label: float | None  # share that holds the name of its true class
    frequent: list[tuple[str, int]]


def caption_statistics(
    summary: Mapping[str, Any],
    names_pseudo_label: float | None,
    names_label: float | None,
    n_frequent: int = 5,
) -> CaptionStatistics:
    """Captions of one kind in numbers: those of their summary, and what needs labels.

    Args:
        summary: of this kind in captions/summary.json.
        names_pseudo_label: percent of the texts that hold the name of their pseudo-label.
        names_label: percent that hold the name of their true class.
        n_frequent: how many of the most frequent texts are kept.
    """
    return CaptionStatistics(
        **{key: summary[key] for key in ("captions", "failed", "empty", "distinct")},
        cut=100 * summary["cut"] / max(1, summary["captions"]),
        words=summary["words"].get("mean"),
        tokens=summary["tokens"].get("mean"),
        names_class=100 * summary["share_naming_a_class"],
        names_pseudo_label=names_pseudo_label,
        names_label=names_label,
        frequent=[(row["caption"], row["times"]) for row in summary["most_repeated"][:n_frequent]],
    )


BASELINE = "zero_shot"
METHODS = 8  # that are compared
ROWS = 1000  # classes in a table


@dataclass(frozen=True)
class Opinions:
    """What some methods say of the N images of a split."""

    methods: list[str]  # M
    labels: Ints  # [M, N]
    main: int  # the method of the run that the page is about
    base: int  # the one that it is compared with: zero-shot, where it was run
    said: runs.Said  # by the main one
    of: int  # methods that were run

    @property
    def before(self) -> Ints:
        found: Ints = self.labels[self.base]
        return found

    @property
    def after(self) -> Ints:
        found: Ints = self.labels[self.main]
        return found

    @property
    def answers(self) -> Ints:
        """How many different classes each image is given [N]."""
        ordered = np.sort(self.labels, axis=0)
        found: Ints = 1 + (np.diff(ordered, axis=0) != 0).sum(axis=0)
        return found


def read_opinions(
    run_files: Sequence[runs.RunFiles], split: runs.Split, main: runs.RunFiles
) -> Opinions:
    """What the methods say: the main one by the main run, each other by its first.

    Args:
        run_files: of all methods.
        split: the images that they were evaluated on.
        main: the run that the page is about.

    Raises:
        UserError: a file is not of the images of the split.
    """
    found: dict[str, str] = {}
    for run in sorted(run_files, key=lambda run: run.seed):
        found.setdefault(run.method, run.predictions)
    found[main.method] = main.predictions
    order = dict.fromkeys(run.method for run in run_files)
    base = BASELINE if BASELINE in found else next(iter(order))
    names = list(dict.fromkeys([base, main.method, *order]))[:METHODS]
    labels = np.stack([runs.read_labels(found[name], split) for name in names])
    said = runs.read_said(main.predictions, split)
    return Opinions(names, labels, names.index(main.method), 0, said, len(found))


@dataclass(frozen=True)
class Method:
    """How a method uses the classes."""

    classes: int  # that it gives to any image
    changed: float  # percent of the images that it gives another class than the base does


def methods(opinions: Opinions) -> dict[str, Method]:
    """How each method that is compared uses the classes."""
    return {
        name: Method(len(np.unique(labels)), 100 * float((labels != opinions.before).mean()))
        for name, labels in zip(opinions.methods, opinions.labels, strict=True)
    }


@dataclass(frozen=True)
class ClassSize:
    """How many images are of a class."""

    label: int
    true: int | None  # None where labels are not known
    before: int
    after: int
    each: list[int]  # by method


def class_sizes(opinions: Opinions, labels: Ints | None, c: int) -> list[ClassSize]:
    """The sizes of the C classes by each method, the largest first; at most ROWS of them."""
    counts = np.stack([np.bincount(one, minlength=c) for one in opinions.labels])  # [M, C]
    true = None if labels is None else np.bincount(labels, minlength=c)
    before, after = counts[opinions.base], counts[opinions.main]
    order = np.lexsort((-before, -after))[:ROWS]
    return [
        ClassSize(
            int(label),
            None if true is None else int(true[label]),
            int(before[label]),
            int(after[label]),
            counts[:, label].tolist(),
        )
        for label in order
    ]


@dataclass(frozen=True)
class Shift:
    """Images that one method gives one class and another method another."""

    before: int
    after: int
    images: int
    share: float  # of the images that were given the first class, in percent


def shifts(before: Ints, after: Ints, c: int, n: int) -> list[Shift]:
    """The n most frequent differences between two methods [N], of C classes."""
    differ = before != after
    pairs, counts = np.unique(
        before[differ].astype(np.int64) * c + after[differ], return_counts=True
    )
    sizes = np.bincount(before, minlength=c)
    return [
        Shift(
            int(pairs[i] // c),
            int(pairs[i] % c),
            int(counts[i]),
            100 * float(counts[i] / sizes[pairs[i] // c]),
        )
        for i in np.argsort(-counts, kind="stable")[:n]
    ]


def disputed(opinions: Opinions, n: int) -> list[int]:
    """The n images about which the methods differ most.

    Those come first that are given the most different classes, and then those of which the main
    method is surest; classes take turns.
    """
    answers = opinions.answers
    order = np.lexsort((-opinions.said.margins, -answers))
    return taking_turns(order[answers[order] > 1], opinions.after, n)


def sides(opinions: Opinions, i: int) -> list[tuple[int, list[str]]]:
    """The classes that an image is given and the methods that say so, most methods first."""
    found: dict[int, list[str]] = {}
    for name, label in zip(opinions.methods, opinions.labels[:, i].tolist(), strict=True):
        found.setdefault(label, []).append(name)
    return sorted(found.items(), key=lambda side: -len(side[1]))


@dataclass(frozen=True)
class Ends:
    """The images of a class of which the main method is surest, and least sure."""

    label: int
    images: int
    disputed: int  # of those, which other methods give another class
    surest: list[int]
    least: list[int]  # the least sure first


def ends_of_classes(opinions: Opinions, budget: int, most: int) -> list[Ends]:
    """The surest and the least sure images of each class that has any.

    Args:
        opinions: of N images.
        budget: images in all; where classes are too many for it, those come with whose images
            other methods disagree most.
        most: images of a class at each end.
    """
    margins, labels = opinions.said.margins, opinions.after
    order = np.lexsort((-margins, labels))
    sizes = np.bincount(labels)
    against = np.bincount(labels[opinions.answers > 1], minlength=len(sizes))
    starts = np.cumsum(sizes) - sizes
    present = np.flatnonzero(sizes)
    per = int(np.clip(budget // (2 * len(present)), 1, most))
    kept = present[np.lexsort((-sizes[present], -against[present]))][: budget // (2 * per)]
    found = []
    for label in sorted(kept.tolist()):
        own = order[starts[label] : starts[label] + sizes[label]].tolist()
        least = own[per:][-per:][::-1]
        found.append(Ends(label, len(own), int(against[label]), own[:per], least))
    return found


SIZE = (4.0, 2.6)  # inches of 72 units: about the width of a phone
LABEL = 22  # characters of a class name beside its bar
# Colour and line of each series, the same in all charts: told apart without colour, too.
SERIES = [(f"#5e71{i:02x}", f"var(--series-{i})") for i in range(1, 7)]
DASHES = ["solid", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (8, 2))]
INK, MUTED, LINE = "#5e71f1", "#5e71f2", "#5e71f3"
VARIABLES = dict(SERIES) | {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Line:
    """A line of a chart: runs [S][T] over x [T], drawn as their mean in the band they span."""

    name: str
    x: Floats
    runs: Sequence[Floats]
    series: int  # 0 to 5: which colour and dash


@dataclass(frozen=True)
class Chart:
    """A drawing with what is said beside it."""

    title: str
    svg: Markup
    note: str = ""
    legend: list[tuple[str, int]] = field(default_factory=list)  # name and series


def line_chart(
    title: str, lines: Sequence[Line], *, x_label: str, note: str = "", legend: bool = False
) -> Chart:
    """Lines over one axis; the alternative text tells where each begins and ends."""
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
        told = "; ".join(
            f"{line.name} from {np.mean([run[0] for run in line.runs]):.3g} "
            f"to {np.mean([run[-1] for run in line.runs]):.3g}"
            for line in lines
        )
        svg = _svg(figure, title, f"{title} by {x_label}: {told}.")
    shown = [(line.name, line.series) for line in lines] if legend else []
    return Chart(title, svg, note, shown)


def bar_chart(
    title: str,
    edges: Floats,
    shares: Floats,
    accuracy: Floats | None,
    *,
    x_label: str,
    note: str = "",
) -> Chart:
    """Shares of images in bins [B] as bars and the accuracy in each [B] as points, in percent."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(x_label)
        middles = (edges[:-1] + edges[1:]) / 2
        axes.bar(middles, 100 * shares, width=0.9 * np.diff(edges), color=LINE)
        told = "share of the images"
        legend = []
        if accuracy is not None:
            axes.plot([0, 1], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
            known = ~np.isnan(accuracy)
            axes.plot(middles[known], 100 * accuracy[known], color=SERIES[0][0], marker="o")
            told = "accuracy"
            legend = [("accuracy", 0)]
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0, top=100 if accuracy is not None else None)
        axes.yaxis.set_major_formatter("{x:.0f} %")
        values = 100 * (shares if accuracy is None else accuracy)
        bins = "; ".join(
            f"{low:.1f} to {high:.1f}: {value:.0f} %"
            for low, high, value in zip(edges[:-1], edges[1:], values, strict=True)
            if not np.isnan(value)
        )
        svg = _svg(figure, title, f"{title}, {told} by {x_label}: {bins}.")
    return Chart(title, svg, note, legend)


def class_chart(
    title: str, names: Sequence[str], values: Floats, *, x_label: str, note: str = ""
) -> Chart:
    """One bar for the value of each class, from top to bottom; to the left where it is negative."""
    rows = np.arange(len(names))
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axes = _axes(x_label, height=0.9 + 0.22 * len(names))
        colours = np.where(values < 0, SERIES[1][0], SERIES[0][0])
        axes.barh(rows, values, height=0.7, color=colours.tolist())
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks(rows, [_short(name) for name in names], parse_math=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        told = "; ".join(f"{name}: {value:+.2f}" for name, value in zip(names, values, strict=True))
        svg = _svg(figure, title, f"{title}, {x_label}: {told}.")
    return Chart(title, svg, note)


def _short(name: str) -> str:
    """A class name that leaves room for its bar."""
    return name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"


def _axes(x_label: str, height: float = SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    return figure, axes


def _svg(figure: Figure, title: str, description: str) -> Markup:
    """The <svg> element alone, with placeholders replaced, as an image that has a description."""
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
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace(
        "<svg", f'<svg class="chart" role="img" aria-label="{escape(description)}"', 1
    )
    return Markup(text)  # matplotlib escapes what it writes


CURVES, POINTS = 6, 120  # methods in a chart of the training, and points of a line
BIASES = 20  # classes in the chart of biases


def training_charts(run_files: Sequence[runs.RunFiles], main: str) -> list[Chart]:
    """Curves of the trained methods, the main one first."""
    names = list(dict.fromkeys(run.method for run in run_files if run.history))
    names.sort(key=lambda name: name != main)
    read = {name: _curves(run_files, name) for name in names[:CURVES]}
    note_on_all = f" The first {CURVES} of {len(names)} methods." if len(names) > CURVES else ""
    note_on_all += _recipe(run_files, names[0]) if names else ""
    found = []
    for column, title, note in (
        ("loss", "Loss", "What training minimises, on the training images."),
        ("agreement", "Agreement with the labels", "Share of predictions equal to their label."),
        ("class_balance", "Balance of the classes", "1: all classes are predicted equally often."),
    ):
        lines = [
            line
            for series, (name, curves) in enumerate(read.items())
            if (line := _line(name, curves, column, series))
        ]
        if lines:
            chart = line_chart(
                title, lines, x_label="epoch", note=f"{note}{note_on_all}", legend=True
            )
            found.append(chart)
    return found


def _recipe(run_files: Sequence[runs.RunFiles], method: str) -> str:
    """Return what a method's training followed, and whether the learning rate was found."""
    history = next(run.history for run in run_files if run.method == method and run.history)
    described = tables.read_metadata(history, "step")
    section = described.get("settings", {}).get("finetune")
    if not section:
        return ""
    found = ", found without labels" if "lr" in described.get("found", []) else ""
    return (
        f" {method}: {section['epochs']} epochs of batches of {section['batch_size']}, learning "
        f"rate {section['lr']:g}{found}."
    )


def latteclip_charts(run_files: Sequence[runs.RunFiles], method: str) -> list[Chart]:
    """What only LatteCLIP's training has: two labels an image, mixed texts, moving prototypes."""
    curves = _curves(run_files, method)
    found = []
    for title, columns, note in (
        (
            "Loss by kind of label",
            {"loss_zero_shot": "pretrained model's label", "loss_finetuned": "tuned model's label"},
            "Each image has a label by the pretrained model and one by the model in training.",
        ),
        (
            "Weights of the descriptions",
            {"weight_class": "class name", "weight_image": "image", "weight_group": "group"},
            "How much each description counts in the text that an image is compared with.",
        ),
        (
            "How far prototypes moved",
            {"prototype_drift": "prototypes"},
            "A prototype stands for a class. 0: where it started, at the text of the class name; "
            "1 minus the cosine to there, mean over classes.",
        ),
    ):
        lines = [
            line
            for series, (column, name) in enumerate(columns.items())
            if (line := _line(name, curves, column, series))
        ]
        if len(lines) > 1 or (len(columns) == 1 and lines):
            found.append(line_chart(title, lines, x_label="epoch", note=note, legend=True))
    return found


def _curves(run_files: Sequence[runs.RunFiles], method: str) -> list[dict[str, Floats]]:
    """The histories of a method's runs."""
    read = [
        runs.read_curves(run.history, POINTS)
        for run in run_files
        if run.method == method and run.history
    ]
    return [curves for curves in read if curves]


def _line(name: str, curves: Sequence[dict[str, Floats]], column: str, series: int) -> Line | None:
    """A column of the histories of S seeds, over the epochs that all of them reached."""
    having = [curve for curve in curves if column in curve and curve[column].any()]
    if not having:
        return None
    points = min(len(curve["epoch"]) for curve in having)
    return Line(name, having[0]["epoch"][:points], [curve[column] for curve in having], series)


def bias_chart(path: str) -> Chart:
    """What each class got whatever an image showed, which calibration takes off, in logits.

    Of many classes the BIASES with the largest biases, either way, from the mean of all biases:
    what all classes have in common changes no prediction.

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
        note="The part of a class's score that does not depend on the image, over the training "
        f"images. zero_shot_calibrated takes it off.{left_out}",
    )


def pseudo_label_charts(train: runs.Split) -> dict[str, Any]:
    """Confidence of the pseudo-labels of the training images, and how often they are right."""
    correct = None
    if train.labels is not None:
        correct = (train.pseudo_labels == train.labels).astype(np.int_)
    found = reliability(train.confidence, correct)
    drawn = [
        bar_chart(
            "Confidence" if correct is None else "Accuracy against confidence",
            found.edges,
            found.shares,
            found.accuracy,
            x_label="confidence of the pseudo-label",
            note="Bars: share of the training images."
            + ("" if correct is None else " Dotted line: as often right as the confidence says."),
        )
    ]
    if found.kept is not None:
        line = Line("accuracy", np.linspace(1, 100, 100), [100 * found.kept], 0)
        drawn.append(
            line_chart(
                "Accuracy of the surest",
                [line],
                x_label="surest pseudo-labels kept, percent",
                note="How right the pseudo-labels are if only the surest are kept, percent.",
            )
        )
    return {
        "charts": drawn,
        "accuracy": None if correct is None else 100 * float(correct.mean()),
        "confidence": 100 * float(train.confidence.mean()),
        "classes": len(np.unique(train.pseudo_labels)),
    }
