"""Digests of the code of stages, as parameters of their rules: an edit reruns those stages.

An `__init__.py` is a docstring alone and left out.
"""

import re
from functools import cache
from pathlib import Path

from latteclip.config import layers
from latteclip.config.labellers import Asker
from latteclip.config.resolve import Method
from latteclip.core.files import digest_of

# An import of a module of the package, with the names that it takes from the module.
IMPORT = re.compile(
    r"^ *(?:from|import) (latteclip[\w.]*)(?: import (\([^)]*\)|.*))?", re.M
)
# Modules that cannot change what a stage writes: errors, messages, signals, the GPUs, and the keys,
# whose values are parameters of their own.
WITHOUT_EFFECT = re.compile(r"latteclip\.(config\..*|core\.(errors|gpus|signals|terminal))")


@cache  # hundreds of jobs have the same code
def code_of(*modules: str) -> str:
    """Return the digest of modules and of their imports from the package, also in functions."""
    files = sorted(map(_file, closure(*modules)))
    # A module `render` fills the templates beside it.
    for file in [each for each in files if each.stem == "render"]:
        files += sorted(file.parent.glob("templates/*"))
    return f"code {modules[0].rpartition('.')[2]} {digest_of(f.read_bytes() for f in files)[:16]}"


def engine_code(asker: Asker, stage: str) -> str:
    """Return the digest of a stage that asks, and of its engine."""
    engine = f"latteclip.captions.engines.{asker.captioner.engine}"
    return code_of(f"latteclip.captions.{stage}", engine)


def training_code(method: Method, stage: str) -> str:
    """Return the digest of a stage that trains, and of its objective."""
    objective = f"latteclip.train.objectives.{method.objective.module}"
    return code_of(f"latteclip.train.{stage}", objective)


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
    return {
        name
        for name in names
        if not WITHOUT_EFFECT.fullmatch(name) and _file(name).is_file()
    }


def _file(name: str) -> Path:
    return layers.PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
