"""The rooms of the package: which may use which."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support.tiny import ROOT

PACKAGE = ROOT / "latteclip"
# In the order in which they may use each other: a room uses those before it, and itself.
ROOMS = (
    *("core", "config", "data", "clip", "labels", "captions", "train", "evaluate"),
    *("report", "audit", "discover", "deploy", "demo", "cli"),
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports() -> Iterator[tuple[str, str]]:
    """Modules with the modules of the package that they import, also in functions."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno} is a relative import"
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in MODULES else str(node.module) for name in inside]
            else:
                continue
            yield from ((module, name) for name in names if name.startswith("latteclip."))


def room(module: str) -> str:
    return f"{module}.".split(".")[1]


def test_no_import_points_back():
    wrong = [
        f"{module} imports {name}"
        for module, name in imports()
        if room(module) in ROOMS and room(name) in ROOMS[ROOMS.index(room(module)) + 1 :]
    ]
    assert wrong == []
