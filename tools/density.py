"""Print how much is packed into a line: AST nodes a line of code, and the densest functions.

    python tools/density.py [FOLDER] [--functions 10]

A line of code has a token that is neither a comment nor part of a docstring. Nodes are those of
Python's `ast`, without the contexts Load, Store and Del.
"""

import argparse
import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MIN_LINES = 8  # of a function that is listed
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
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    return found - docstrings


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
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default="latteclip", type=Path)
    parser.add_argument(
        "--functions", default=10, type=int, help="how many functions to list"
    )
    args = parser.parse_args()
    rooms: dict[str, list[Density]] = defaultdict(list)
    functions: list[Density] = []
    for path in sorted(args.folder.rglob("*.py")):
        density, found = measure(path)
        inside = path.relative_to(args.folder).parts
        rooms[inside[0] if len(inside) > 1 else "."].append(density)
        functions += found
    for room, files in rooms.items():
        print(_row(room, files))
    print(_row("all", [one for files in rooms.values() for one in files]))
    for one in sorted(functions, key=lambda one: -one.value)[: args.functions]:
        print(f"{one.value:6.1f}  {one.name}")


def _row(name: str, files: list[Density]) -> str:
    nodes = sum(one.nodes for one in files)
    lines = sum(one.lines for one in files)
    return f"{nodes / max(1, lines):6.2f}  {name:10} {lines:7,} lines of code"


if __name__ == "__main__":
    main()
