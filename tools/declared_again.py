"""Print the keys of the configuration's sections that a stage's settings declare again.

    python tools/declared_again.py              # of this checkout
    python tools/declared_again.py ../other     # of another one

Settings are classes that are built from JSON: types of parameters of the functions that rules call,
types of their fields, and what `from_values` builds. A key is declared once, in one section, so a
field of its name in such a class is a second declaration. Sources are read and not imported.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Classes whose fields have other meanings than the keys of their names: models, and what a stage
# reads and writes about a run.
RECORDS = {
    *(
        "Accuracy",
        "Audit",
        "Candidate",
        "Clip",
        "Comparison",
        "Fold",
        "ImageEncoder",
        "ImagePreprocessing",
    ),
    *("Preprocessing", "RunFiles", "RunTables", "Sizes", "TrainingFiles", "TrainingResult"),
    "VoterTable",
}
# Fields with other meanings than the keys of their names.
OTHERS = {
    ("ReportSettings", "dataset"),  # of the page
    ("ReportSettings", "suffix"),  # of the names of files
    ("FinetuneSettings", "method"),  # a section: what a training reads of its method
}


def declared_again(root: Path) -> dict[str, list[str]]:
    """Return the keys that classes of settings declare again, by class."""
    package = root / "latteclip"
    paths = sorted(package.rglob("*.py"))
    trees = {path: ast.parse(path.read_text("utf-8")) for path in paths}
    of_config = {path for path in paths if package / "config" in path.parents}
    sections = _sections([trees[path] for path in of_config])
    keys = {name for section in sections for name in _fields(section)}
    others = [trees[path] for path in paths if path not in of_config]
    classes = {node.name: node for tree in others for node in _classes(tree)}
    found = {}
    for name in sorted(_settings(others, classes, _rules(root)) - RECORDS):
        again = [key for key in _fields(classes[name]) if key in keys]
        again = [key for key in again if not _is_section(classes[name], key)]
        if again := [key for key in again if (name, key) not in OTHERS]:
            found[name] = again
    return found


def _rules(root: Path) -> set[str]:
    files = (root / "workflow" / "rules").glob("*.smk")
    texts = [file.read_text("utf-8") for file in files]
    return {rule for text in texts for rule in re.findall(r"^rule (\w+):", text, re.M)}


def _classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def _names(nodes: Iterable[ast.expr | None]) -> set[str]:
    inside = [each for node in nodes if node for each in ast.walk(node)]
    return {each.id for each in inside if isinstance(each, ast.Name)}


def _fields(node: ast.ClassDef) -> dict[str, ast.expr]:
    """Return the types of the fields of a class, without those that only narrow a key's type."""
    found = {}
    for each in node.body:
        if not isinstance(each, ast.AnnAssign) or "narrowed" in _names([each.value]):
            continue
        if isinstance(each.target, ast.Name):
            found[each.target.id] = each.annotation
    return found


def _is_section(node: ast.ClassDef, key: str) -> bool:
    return any(name.endswith("Section") for name in _names([_fields(node)[key]]))


def _sections(trees: Iterable[ast.Module]) -> list[ast.ClassDef]:
    """Return the classes that inherit from `Section`, directly or not."""
    classes = [node for tree in trees for node in _classes(tree)]
    names = {"Section"}
    while more := {node.name for node in classes if names & _names(node.bases)} - names:
        names |= more
    return [node for node in classes if node.name in names]


def _settings(
    trees: Iterable[ast.Module], classes: dict[str, ast.ClassDef], rules: set[str]
) -> set[str]:
    """Return the names of the classes of settings."""
    found: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and "from_values" in _names([node.func]):
            found |= _names(node.args[:1])
        if isinstance(node, ast.FunctionDef) and node.name in rules:
            parameters = [*node.args.args, *node.args.kwonlyargs]
            found |= _names(each.annotation for each in parameters)
    found &= classes.keys()
    while more := _related(found, classes) - found:
        found |= more
    return found


def _related(names: set[str], classes: dict[str, ast.ClassDef]) -> set[str]:
    """Return the types of fields of classes, their parents and their children."""
    types = {name for each in names for name in _names(_fields(classes[each]).values())}
    parents = {name for each in names for name in _names(classes[each].bases)}
    children = {name for name, node in classes.items() if names & _names(node.bases)}
    return (types | parents | children) & classes.keys()


def main() -> None:
    """Print a line for each class, and the sums."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    found = declared_again(root.resolve())
    for name, keys in found.items():
        print(f"{name}: {', '.join(keys)}")
    distinct = {key for keys in found.values() for key in keys}
    times = sum(map(len, found.values()))
    print(
        f"{len(distinct)} names of keys are declared again, {times} times in {len(found)} classes"
    )


if __name__ == "__main__":
    main()
