"""Charts of the trainings and of the pseudo-labels, as SVG.

Matplotlib draws them. Colours are replaced by CSS variables of the page, so that one drawing serves
light and dark.

Letters: N images, S seeds, T points of a line, B bins.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latteclip.report import runs
from latteclip.report.comparison import Row
from latteclip.report.runs import Floats, Ints

CURVES, POINTS = 6, 120  # methods in a chart of the training, and points of a line
BINS = 10  # bins of confidence
SIZE = (4.0, 2.6)  # inches of 72 units: about the width of a phone
# Colour and line of each series, the same in all charts, distinct without colour too.
SERIES = [(f"#5e71{i:02x}", f"var(--series-{i})") for i in range(1, 7)]
DASHES = [
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 1)),
    (0, (8, 2)),
]
INK = "#5e71f1"
MUTED = "#5e71f2"
LINE = "#5e71f3"
VARIABLES = dict(SERIES) | {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "lines.linewidth": 1.7,
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
}
# Column of a history, title and note of each chart that all trainings have.
OF_TRAINING = (
    ("loss", "Loss", "The training objective, on the training images."),
    (
        "agreement",
        "Agreement with the labels",
        "Share of predictions equal to their label.",
    ),
    ("class_balance", "Class balance", "1: all classes are predicted equally often."),
)
# The same of LatteCLIP, with a name of each column.
OF_LATTECLIP = (
    (
        {
            "loss_zero_shot": "pretrained model's label",
            "loss_finetuned": "fine-tuned model's label",
        },
        "Loss by kind of label",
        "Each image has a label by the pretrained model and one by the model in training.",
    ),
    (
        {"weight_class": "class name", "weight_image": "image", "weight_group": "group"},
        "Weights of the descriptions",
        "The weight of each description in the text that an image is compared with.",
    ),
    (
        {"prototype_drift": "prototypes"},
        "Drift of the prototypes",
        "The prototype of a class starts at the text of its name. The drift is 1 minus the "
        "cosine to the start, as the mean over classes.",
    ),
)
# One mapping for each run of a method, see `runs.read_curves`.
Curves = Sequence[Mapping[str, Floats]]


class Line(NamedTuple):
    """A line of a chart: runs [S][T] over x [T], drawn as their mean in the band they span."""

    name: str
    x: Floats
    runs: Sequence[Floats]
    series: int  # 0 to 5: which colour and dash


def training_curves(
    run_files: Sequence[runs.RunTables],
) -> dict[str, list[dict[str, Floats]]]:
    """Read the histories of the runs of each trained method."""
    curves: dict[str, list[dict[str, Floats]]] = {}
    for run in run_files:
        if run.history:
            curves.setdefault(run.method, []).append(runs.read_curves(run.history, POINTS))
    return curves


def training_charts(curves: Mapping[str, Curves], main: str) -> list[Row]:
    """Draw the curves of the trained methods, the main one first."""
    names = sorted(curves, key=lambda name: name != main)
    more = ""
    if len(names) > CURVES:
        more = f" The first {CURVES} of {len(names)} methods."
        names = names[:CURVES]
    charts = []
    for column, title, note in OF_TRAINING:
        lines = _lines((name, column, curves[name]) for name in names)
        if lines:
            charts.append(line_chart(title, lines, note + more))
    return charts


def latteclip_charts(curves: Curves) -> list[Row]:
    """Draw what only LatteCLIP's training has: two labels an image, mixed texts, prototypes."""
    charts = []
    for columns, title, note in OF_LATTECLIP:
        lines = _lines((name, column, curves) for column, name in columns.items())
        if len(lines) >= min(2, len(columns)):
            charts.append(line_chart(title, lines, note))
    return charts


def _ends(line: Line) -> str:
    """Say where a line begins and ends, as means of its runs."""
    start = np.mean([run[0] for run in line.runs])
    end = np.mean([run[-1] for run in line.runs])
    return f"{line.name} from {start:.3g} to {end:.3g}"


def _lines(wanted: Iterable[tuple[str, str, Curves]]) -> list[Line]:
    """Return a line for each name, column and histories, over the epochs that all seeds reached."""
    lines = []
    for series, (name, column, curves) in enumerate(wanted):
        having = [curve for curve in curves if column in curve and curve[column].any()]
        if having:
            n_points = min(len(curve["epoch"]) for curve in having)
            line = Line(
                name=name,
                x=having[0]["epoch"][:n_points],
                runs=[curve[column] for curve in having],
                series=series,
            )
            lines.append(line)
    return lines


def pseudo_label_charts(train: runs.SplitReport) -> list[Row]:
    """Draw the confidence of the pseudo-labels of the training images, and their accuracy."""
    if train.labels is None:
        return [_confidence_chart(train.confidence, None)]
    right = train.pseudo_labels == train.labels
    surest_first = np.argsort(-train.confidence, kind="stable")
    n_right = np.cumsum(right[surest_first])  # [N]
    percents = np.linspace(1, 100, 100)
    ends = np.ceil(percents / 100 * len(right)).astype(int)
    accuracy = 100 * (n_right[ends - 1] / ends)
    accuracies = line_chart(
        "Accuracy of the most confident",
        [Line(name="accuracy", x=percents, runs=[accuracy], series=0)],
        "Accuracy of the pseudo-labels among the most confident ones, in percent.",
        x_label="percent of the pseudo-labels, by confidence",
        legend=False,
    )
    return [_confidence_chart(train.confidence, right), accuracies]


def reliability(confidence: Floats, right: Ints | None) -> tuple[Floats, Floats]:
    """Return the share of the images in each bin of confidence [B], and their accuracy [B].

    Bins have equal width. `right` [N] is None where labels are not known.
    """
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    if right is None:
        right = np.full(len(number), np.nan)
    groups = pd.Series(right.astype(float)).groupby(number)
    table = groups.agg(["size", "mean"]).reindex(range(BINS))
    shares = table["size"].fillna(0).to_numpy() / len(number)
    return shares, table["mean"].to_numpy()


def _confidence_chart(confidence: Floats, right: Ints | None) -> Row:
    """Draw shares of images by confidence as bars, and the accuracy of each bar as a point."""
    shares, accuracy = reliability(confidence, right)
    title = "Confidence"
    what = "share of the images"
    note = "Bars: share of the training images."
    x_label = "confidence of the pseudo-label"
    edges = np.linspace(0, 1, len(shares) + 1)
    with _axes(x_label) as (figure, axes):
        middles = (edges[:-1] + edges[1:]) / 2
        axes.bar(middles, 100 * shares, width=0.9 * np.diff(edges), color=LINE)
        if right is not None:
            title = "Accuracy against confidence"
            what = "accuracy"
            note += " Dotted line: accuracy equal to the confidence."
            axes.plot([0, 1], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
            filled = shares > 0
            axes.plot(
                middles[filled], 100 * accuracy[filled], color=SERIES[0][0], marker="o"
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0, top=None if right is None else 100)
        axes.yaxis.set_major_formatter("{x:.0f} %")
        values = shares if right is None else accuracy
        bins = "; ".join(
            f"{low:.1f} to {high:.1f}: {100 * value:.0f} %"
            for low, high, value in zip(edges[:-1], edges[1:], values, strict=True)
            if not np.isnan(value)
        )
        return _drawing(figure, title, f"{title}, {what} by {x_label}: {bins}.", note)


def line_chart(
    title: str,
    lines: Sequence[Line],
    note: str,
    *,
    x_label: str = "epoch",
    legend: bool = True,
) -> Row:
    """Draw lines over one axis. The alternative text names where each begins and ends."""
    with _axes(x_label) as (figure, axes):
        for line in lines:
            values = np.stack([run[: len(line.x)] for run in line.runs])  # [S, T]
            colour = SERIES[line.series][0]
            dash = DASHES[line.series]
            axes.plot(line.x, values.mean(axis=0), color=colour, linestyle=dash)
            if len(values) > 1:
                low = values.min(axis=0)
                high = values.max(axis=0)
                axes.fill_between(line.x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.margins(x=0.01)
        axes.set_xlim(left=0)
        ends = "; ".join(map(_ends, lines))
        names = [(line.name, line.series) for line in lines] if legend else []
        return _drawing(figure, title, f"{title} by {x_label}: {ends}.", note, names)


@contextmanager
def _axes(x_label: str) -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        yield figure, figure.add_subplot(xlabel=x_label)


def _drawing(
    figure: Figure,
    title: str,
    description: str,
    note: str,
    legend: Sequence[tuple[str, int]] = (),
) -> Row:
    """Return a chart with its <svg>: placeholders are replaced, and it has a description."""
    file = io.StringIO()
    # Ids that repeat on no other chart nor vary.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(
        r"<(metadata|style).*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL
    )
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda m: m[0] if m[1] in used else "", text)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for side in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
    label = f'<svg class="chart" role="img" aria-label="{escape(description)}"'
    svg = Markup(text.replace("<svg", label, 1))  # matplotlib escapes what it writes
    return {"title": title, "svg": svg, "note": note, "legend": legend}
