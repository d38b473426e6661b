"""Draw how the stages grow with the number of images.

    python benchmarks/scale.py 10000 100000 1000000 --lines docs/scaling.jsonl
    python benchmarks/growth.py docs/scaling.jsonl docs/scaling.svg

Two charts, peak memory and CPU time over the number of images, one line for each of the steps that
take most memory.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
MEASURES = {"memory": ("peak memory, MiB", "memory"), "cpu": ("CPU seconds", "time")}


def read(path: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Return figures by title and number of images. The last line about the same counts."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "title" in line:
            found.setdefault(line["title"], {})[line["images"]] = line
    drawn = [title for title, points in found.items() if len(points) > 1]
    drawn.sort(key=lambda title: -max(point["memory"] for point in found[title].values()))
    return {title: found[title] for title in drawn[: len(MARKERS)]}


def draw(steps: dict[str, dict[int, dict[str, Any]]], output: Path) -> None:
    """Draw the two charts, on scales of powers of ten."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    for axes, (name, (label, what)) in zip(
        figure.subplots(1, 2), MEASURES.items(), strict=True
    ):
        for marker, (title, points) in zip(MARKERS, steps.items(), strict=False):
            numbers = sorted(points)
            values = [points[n][name] for n in numbers]
            axes.plot(
                numbers, values, marker=marker, markersize=4, linewidth=1.2, label=title
            )
        axes.set(xscale="log", yscale="log", xlabel="images", ylabel=label, title=what)
        axes.grid(color="0.9")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scale"}):
        figure.savefig(output, format="svg", metadata={"Date": None})


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", type=Path, help="lines of JSON")
    parser.add_argument("picture", type=Path, help="an SVG")
    args = parser.parse_args()
    draw(read(args.figures), args.picture)


if __name__ == "__main__":
    main()
