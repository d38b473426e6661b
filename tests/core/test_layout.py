"""The rooms of the package: which may use which, and what else the floor plan promises."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

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


def test_no_import_points_back_and_no_stage_imports_a_stage():
    stages = set(STAGES.values())
    wrong = [
        f"{module} imports {name}"
        for module, name in imports()
        if (room(module) in ROOMS and room(name) in ROOMS[ROOMS.index(room(module)) + 1 :])
        or (room(module) != "cli" and name in stages and name != module)
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
