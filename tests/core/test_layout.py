"""The rooms of the package: which may use which, and what else the floor plan promises."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny import ROOT

from latteclip.cli.stages import STAGES

PACKAGE = ROOT / "latteclip"
# In the order in which they may use each other: a room uses those before it, and itself.
ROOMS = (
    *("core", "config", "data", "clip", "captions", "labels", "train", "evaluate"),
    *("report", "audit", "deploy", "demo", "cli"),
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module of the package) of each import, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield node.lineno, inside if inside in MODULES else str(node.module)


def imported(path: Path) -> list[tuple[int, str]]:
    return [(line, name) for line, name in imports(path) if name.split(".")[0] == "latteclip"]


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def test_no_import_points_back():
    back = [
        f"{path}:{line} imports {name}, and {room(module)} may not use {room(name)}"
        for module, path in MODULES.items()
        for line, name in imported(path)
        if room(module) in ROOMS and room(name) in ROOMS[ROOMS.index(room(module)) + 1 :]
    ]
    assert back == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: sorted({other for _, other in imported(path)}) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            pytest.fail(f"a circle of imports: {' -> '.join([*way[way.index(name) :], name])}")
        if name not in done:
            for other in graph.get(name, []):
                visit(other, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_no_stage_imports_a_stage():
    stage = set(STAGES.values())
    wrong = [
        f"{path}:{line} imports the stage {name}"
        for module, path in MODULES.items()
        if room(module) != "cli"
        for line, name in imported(path)
        if name in stage and name != module
    ]
    assert wrong == []


def test_rules_commands_functions_and_modules_have_one_name():
    rules = {
        found[1]
        for file in (ROOT / "workflow" / "rules").glob("*.smk")
        for found in re.finditer(r"^rule (\w+):", file.read_text("utf-8"), re.MULTILINE)
    }
    assert rules == set(STAGES)
    for name, module in STAGES.items():
        assert module.rpartition(".")[2] in (name, "caption", "download_models"), name
        functions = {
            node.name
            for node in ast.parse(MODULES[module].read_text("utf-8")).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{module} has no function {name}"


def test_rules_call_the_command_of_their_name_and_track_its_module():
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"^(?=rule |use rule )", file.read_text("utf-8"), flags=re.MULTILINE):
            found = re.match(r"rule (\w+):", rule)
            if not found:
                continue
            name = found[1]
            assert re.search(rf"(latteclip|\}}) {name.replace('_', '-')} ", rule), name
            if "download" not in name:
                assert f'sources("{STAGES[name]}")' in rule, name
