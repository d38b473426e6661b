"""Line and bar charts as SVG that takes its colours and fonts from the page.

Matplotlib draws; colours are written as placeholders and replaced by CSS variables, so that one
drawing serves light and dark. Texts stay texts. Letters: S seeds, T points, B bins.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latteclip.report.runs import Floats

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
