"""List the source files of a stage: as inputs of its rule, they make an edit rerun only that stage.

Snakemake itself sees the shell command of a rule, not the package behind it.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from latteclip.config import layers

# Modules that cannot change what a stage writes: errors, messages, signals, files put in place,
# checks of settings, and the GPUs and processes that do the work in order.
WITHOUT_EFFECT = frozenset(
    f"latteclip.{name}"
    for name in (
        *("core.errors", "core.files", "core.gpus", "core.settings"),
        *("core.signals", "core.terminal", "data.workers"),
    )
)


def sources(*modules: str) -> list[str]:
    """Return the files of modules and of their imports from the package, also in functions.

    Sorted paths, relative where they are inside the working folder. A package's `__init__.py` is
    not among them, for it is a docstring alone.
    """
    return list(_sources(modules, Path.cwd()))


@cache  # hundreds of jobs have the same code
def _sources(modules: tuple[str, ...], here: Path) -> list[str]:
    return sorted(layers.relative_to_cwd(_file(name)) for name in closure(*modules))


def templates() -> list[str]:
    """Return the templates, style and script of the pages, which count as code."""
    return sorted(map(layers.relative_to_cwd, (layers.PACKAGE / "report" / "templates").iterdir()))


def closure(*modules: str) -> set[str]:
    """Return modules and their direct and indirect imports from the package."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(_file(name))
    return found


@cache
def _imports(file: Path) -> list[str]:
    """Return the modules that a file imports from the package, without those of no effect."""
    names = set(_imported_names(ast.parse(file.read_bytes()))) - WITHOUT_EFFECT
    return [name for name in names if name.startswith("latteclip.") and _file(name).is_file()]


def _imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names in import statements; what they take from a module may be a module."""
    for part in ("body", "orelse", "handlers", "finalbody", "cases"):
        for node in getattr(tree, part, ()):  # expressions, most of a tree, have none
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield from _imported_names(node)


def _file(name: str) -> Path:
    return layers.PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
