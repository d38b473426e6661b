import ast
import re
from pathlib import Path

from latteclip.config.layers import PACKAGE

ROOT = Path(PACKAGE.parent)
FILES = sorted(PACKAGE.glob("*/**/*.py"))


def imported(file):
    """The modules of the package that a file imports, also in functions."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def test_packages_import_each_other_in_the_order_that_contributing_gives():
    text = Path(ROOT, "CONTRIBUTING.md").read_text("utf-8")
    [order] = re.findall(r"in this order only: ([\w, ]+)\.", text)
    places = {name: place for place, name in enumerate(order.split(", "))}
    assert set(places) == {file.relative_to(PACKAGE).parts[0] for file in FILES}
    upwards = [
        (str(file.relative_to(ROOT)), module)
        for file in FILES
        for module in imported(file)
        if (parts := module.split("."))[0] == "latteclip" and parts[1:]
        if places.get(parts[1], -1) > places[file.relative_to(PACKAGE).parts[0]]
    ]
    assert upwards == []


def test_names_that_rules_use_have_a_definition_that_says_what_they_give():
    for file in (ROOT / "workflow").glob("**/*.smk"):
        lambdas = re.findall(r"^\w+ = lambda", file.read_text("utf-8"), re.MULTILINE)
        assert lambdas == [], file
    common = Path(ROOT, "workflow", "rules", "common.smk").read_text("utf-8")
    functions = re.findall(r"^def (\w+)\(.*\):\n(    \"\"\"Return)?", common, re.MULTILINE)
    assert functions
    assert [name for name, says in functions if not says] == []
