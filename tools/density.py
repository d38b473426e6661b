"""Print how much is packed into a line: AST nodes a line of code, and the densest functions.

    python tools/density.py [FOLDER] [--functions 10] [--max 6.5] [--max-function 14]

A line of code has a token that is neither a comment nor part of a docstring. Nodes are those of
Python's `ast`, without the contexts Load, Store and Del.
"""

import argparse
import ast
import io
import math
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MIN_LINES = 8  # lines of code of a function that is listed, at least
CONTEXTS = (ast.Load, ast.Store, ast.Del)
NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Density(NamedTuple):
    """A function or room with its AST nodes and lines of code."""

    name: str
    nodes: int
    lines: int

    @property
    def value(self) -> float:
        return self.nodes / max(1, self.lines)


def code_lines(text: str, tree: ast.AST) -> set[int]:
    """Return the numbers of the lines of code."""
    docstrings = set(_docstring_lines(tree))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstrings


def _docstring_lines(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.Expr(ast.Constant(str())):
                yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def count_nodes(tree: ast.AST) -> int:
    """Return the number of AST nodes without contexts."""
    return sum(not isinstance(node, CONTEXTS) for node in ast.walk(tree))


def measure(path: Path) -> tuple[Density, list[Density]]:
    """Return the density of a file, and of its functions of at least MIN_LINES lines."""
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    lines = code_lines(text, tree)
    functions = []
    for node in ast.walk(tree):
        if isinstance(node, Function):
            span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            own = len(lines.intersection(span))
            if own >= MIN_LINES:
                functions.append(
                    Density(f"{path}:{node.lineno} {node.name}", count_nodes(node), own)
                )
    return Density(str(path), count_nodes(tree), len(lines)), functions


def main() -> None:
    """Print the table, and exit with 1 and a sentence where more is packed than allowed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default="latteclip", type=Path)
    parser.add_argument(
        "--functions", default=10, type=int, help="how many functions to list"
    )
    parser.add_argument("--max", default=math.inf, type=float, help="nodes a line of all")
    parser.add_argument(
        "--max-function", default=math.inf, type=float, help="nodes a line of a function"
    )
    args = parser.parse_args()
    rooms: dict[str, list[Density]] = defaultdict(list)
    functions: list[Density] = []
    for path in sorted(args.folder.rglob("*.py")):
        density, functions_of_file = measure(path)
        inside = path.relative_to(args.folder).parts
        rooms[inside[0] if len(inside) > 1 else "."].append(density)
        functions += functions_of_file
    for room, files in rooms.items():
        _print_row(total(room, files))
    package = total("all", [density for files in rooms.values() for density in files])
    _print_row(package)
    functions.sort(key=lambda density: -density.value)
    for density in functions[: args.functions]:
        print(f"{density.value:6.1f}  {density.name}")
    if package.value > args.max:
        sys.exit(
            f"error: {args.folder} has {package.value:.2f} AST nodes a line of code, more than "
            f"{args.max:g}; say the densest functions in more steps."
        )
    if functions and functions[0].value > args.max_function:
        densest = functions[0]
        sys.exit(
            f"error: {densest.name} has {densest.value:.1f} AST nodes a line of code, more than "
            f"{args.max_function:g}; say it in more steps."
        )


def total(name: str, files: list[Density]) -> Density:
    """Return the density of several files together."""
    nodes = sum(density.nodes for density in files)
    lines = sum(density.lines for density in files)
    return Density(name, nodes, lines)


def _print_row(density: Density) -> None:
    print(f"{density.value:6.2f}  {density.name:10} {density.lines:7,} lines of code")


if __name__ == "__main__":
    main()
