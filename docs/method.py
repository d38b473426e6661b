"""Draw the picture of the method, docs/method.svg, with python docs/method.py.

One file for light and dark pages: its colours follow `prefers-color-scheme`.
"""

from pathlib import Path

WIDTH, HEIGHT = 960, 250
BOX, GAP = 150, 42
STYLE = """
  rect { fill: #f2f7f6; stroke: #00796b; stroke-width: 1.5 }
  text { fill: #1b2b29; font: 14px system-ui, sans-serif; text-anchor: middle }
  .title { font-weight: 600 }
  .small { font-size: 12px }
  path { stroke: #00796b; stroke-width: 1.5; fill: none; marker-end: url(#head) }
  marker path { fill: #00796b; marker-end: none }
  @media (prefers-color-scheme: dark) {
    rect { fill: #14302c; stroke: #4db6ac }
    text { fill: #e6f2f0 }
    path { stroke: #4db6ac }
    marker path { fill: #4db6ac }
  }
"""
# Column, upper edge, height, title, lines.
BOXES = [
    (0, 75, 100, "Photographs", ["no labels", "+ names of classes"]),
    (1, 10, 100, "CLIP's guesses", ["zero-shot scores,", "class bias removed"]),
    (1, 140, 100, "Captions", ["of one image,", "of four alike"]),
    (2, 75, 100, "Labels", ["captions, scores and", "similar images agree"]),
    (3, 75, 100, "Tuned CLIP", ["trained on labels", "and class texts"]),
    (4, 10, 100, "Model", ["open_clip, ONNX,", "transformers"]),
    (4, 140, 100, "Page", ["did it help?", "where, and how sure"]),
]
ARROWS = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, 5), (4, 6)]


def left(column: int) -> int:
    """Return the left edge of a column."""
    return 5 + column * (BOX + GAP + 8)


def main() -> None:
    """Write the picture beside this file."""
    parts = []
    for column, top, height, title, lines in BOXES:
        middle = left(column) + BOX // 2
        parts.append(
            f'<rect x="{left(column)}" y="{top}" width="{BOX}" height="{height}" rx="10"/>'
        )
        parts.append(
            f'<text class="title" x="{middle}" y="{top + 35}">{title}</text>'
        )
        parts += [
            f'<text class="small" x="{middle}" y="{top + 58 + 18 * i}">{line}</text>'
            for i, line in enumerate(lines)
        ]
    for start, end in ARROWS:
        (column, top, height, *_), (to, to_top, to_height, *_) = (
            BOXES[start],
            BOXES[end],
        )
        x, y = left(column) + BOX + 3, top + height // 2
        to_x, to_y = left(to) - 4, to_top + to_height // 2
        half = (x + to_x) // 2
        parts.append(
            f'<path d="M{x} {y} C{half} {y} {half} {to_y} {to_x} {to_y}"/>'
        )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        "<title>Photographs become guesses and captions, these become labels, labels tune CLIP, "
        "and the result is a model and a page</title>"
        f"<style>{STYLE}</style>"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 Z"/></marker></defs>'
        + "".join(parts)
        + "</svg>\n"
    )
    Path(__file__).with_suffix(".svg").write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
