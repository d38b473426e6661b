"""The code of stages, as inputs of their rules: an edit reruns the stages whose code it is.

An `__init__.py` is a docstring alone and left out.
"""

import re
from functools import cache
from pathlib import Path

from latteclip.config import layers
from latteclip.config.configuration import Configuration

Paths = list[str]
# An import of a module of the package, with the names that it takes from the module.
IMPORT = re.compile(
    r"^ *(?:from|import) (latteclip[\w.]*)(?: import (\([^)]*\)|.*))?", re.M
)
# Modules that cannot change what a stage writes: errors, messages, signals, files put in place,
# checks of settings, and the GPUs and processes that do the work in order.
WITHOUT_EFFECT = {
    "latteclip.core.errors",
    "latteclip.core.files",
    "latteclip.core.gpus",
    "latteclip.core.signals",
    "latteclip.core.terminal",
    "latteclip.data.workers",
}


@cache  # hundreds of jobs have the same code
def sources(*modules: str) -> Paths:
    """Return the files of modules and of their imports from the package, also in functions.

    An edit reruns the stages whose rules have the edited module among their inputs. Snakemake
    itself sees the shell command of a rule.
    """
    return sorted(layers.relative_to_cwd(_file(name)) for name in closure(*modules))


def closure(*modules: str) -> set[str]:
    """Return modules and their direct and indirect imports from the package."""
    modules_read = set[str]()
    waiting = set(modules)
    while waiting:
        module = waiting.pop()
        modules_read.add(module)
        waiting |= _imports(_file(module)) - modules_read
    return modules_read


@cache
def _imports(file: Path) -> set[str]:
    """Return the modules that a file imports from the package, without those of no effect."""
    names = set()
    for module, taken in IMPORT.findall(file.read_text("utf-8")):
        names |= {module, *(f"{module}.{name}" for name in re.findall(r"\w+", taken))}
    return {name for name in names - WITHOUT_EFFECT if _file(name).is_file()}


def _file(name: str) -> Path:
    return layers.PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")


def templates() -> Paths:
    """Return the templates, style and script of the pages, which count as code."""
    return sorted(
        map(layers.relative_to_cwd, (layers.PACKAGE / "report" / "templates").iterdir())
    )


def engine_code(configuration: Configuration, dataset: str, voter: str = "") -> Paths:
    """Return the sources of the engine that writes a dataset's captions and scores its classes."""
    engine = configuration.section("captioner", dataset, voter)["engine"]
    return sources(f"latteclip.captions.engines.{engine}")


def objective_code(configuration: Configuration, method: str) -> Paths:
    """Return the sources of a method's objective."""
    return sources(f"latteclip.train.objectives.{configuration.objective(method).module}")
