import ast
import re
from collections import Counter
from pathlib import Path

from latteclip.cli.main import STAGES
from latteclip.config.layers import PACKAGE

ROOT = Path(PACKAGE.parent)
FILES = sorted(PACKAGE.glob("*/**/*.py"))


def name_of(file):
    """The name of the module of a file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def imported(file):
    """The modules of the package that a file imports, also in functions."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def source(module):
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def test_packages_import_only_those_above_them_in_the_table_of_the_architecture():
    text = Path(ROOT, "docs", "architecture.md").read_text("utf-8")
    rooms = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    places = {name: place for place, name in enumerate(rooms)}
    assert set(places) == {file.relative_to(PACKAGE).parts[0] for file in FILES}
    upwards = [
        (str(file.relative_to(ROOT)), module)
        for file in FILES
        for module in imported(file)
        if (parts := module.split("."))[0] == "latteclip" and parts[1:]
        if places.get(parts[1], -1) > places[file.relative_to(PACKAGE).parts[0]]
    ]
    assert upwards == []


def test_stages_do_not_import_each_other():
    """What two of them need lies in a room below, so that an edit of one reruns that one."""
    stages = set(STAGES.values())
    imports = {stage: stages & {*imported(source(stage))} - {stage} for stage in stages}
    assert {stage: others for stage, others in imports.items() if others} == {}


def test_names_that_rules_use_have_a_definition_that_says_what_they_give():
    for file in (ROOT / "workflow").glob("**/*.smk"):
        lambdas = re.findall(r"^\w+ = lambda", file.read_text("utf-8"), re.MULTILINE)
        assert lambdas == [], file
    common = Path(ROOT, "workflow", "rules", "common.smk").read_text("utf-8")
    functions = re.findall(r"^def (\w+)\(.*\):\n(    \"\"\"Return)?", common, re.MULTILINE)
    assert functions
    assert [name for name, says in functions if not says] == []


def test_modules_of_the_package_import_each_other_in_no_circle():
    """Also imports that only a type checker sees."""
    graph = {name_of(file): set(imported(file)) for file in FILES}
    waiting = {name: found & graph.keys() for name, found in graph.items()}
    while free := {name for name, found in waiting.items() if not found - {name}}:
        waiting = {n: found - free for n, found in waiting.items() if n not in free}
    assert waiting == {}


# Templates are programs of their own, for other people's folders.
def test_no_two_classes_have_the_same_name():
    names = Counter(
        node.name
        for file in FILES
        if "templates" not in file.parts
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, number in names.items() if number > 1] == []
