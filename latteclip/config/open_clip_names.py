"""The names that the installed open_clip knows: models, and pretrained weights of each.

Its source is read, for importing open_clip imports torch.
"""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

TABLE = "_PRETRAINED"  # of open_clip/pretrained.py: weights by model
QUICK = "quick_gelu"  # marks weights that another model has as well, whose name ends in QUICK_MODEL
QUICK_MODEL = "-quickgelu"


@cache
def models() -> frozenset[str]:
    """Names of models; none where open_clip is not installed."""
    return frozenset(path.stem for path in _folder().glob("model_configs/*.json"))


def tags(model: str) -> frozenset[str]:
    """Names of the pretrained weights of a model."""
    return _tags().get(model, frozenset())


def clean(tag: str) -> str:
    """A name of weights as open_clip compares it."""
    return tag.lower().replace("-", "_")


def _folder() -> Path:
    spec = find_spec("open_clip")
    return Path(spec.origin).parent if spec and spec.origin else Path("/nowhere")


@cache
def _tags() -> dict[str, frozenset[str]]:
    """Names of weights by model; none where the source is not there, or has another form."""
    source = _folder() / "pretrained.py"
    if not source.is_file():
        return {}
    variables: dict[str, dict[str, bool]] = {}
    found: dict[str, frozenset[str]] = {}
    for node in ast.parse(source.read_bytes()).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        variables[node.targets[0].id] = _weights(node.value)
        if node.targets[0].id == TABLE and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                weights = variables[value.id] if isinstance(value, ast.Name) else _weights(value)
                model = str(key.value) if isinstance(key, ast.Constant) else ""
                quick = frozenset(name for name, is_quick in weights.items() if is_quick)
                found |= {model: frozenset(weights), model + QUICK_MODEL: quick}
    return {model: weights for model, weights in found.items() if weights}


def _weights(value: ast.expr) -> dict[str, bool]:
    """Of `dict(name=config(...), ...)` each name, and whether it is marked QUICK."""
    words = value.keywords if isinstance(value, ast.Call) else []
    return {word.arg: _is_quick(word.value) for word in words if word.arg}


def _is_quick(config: ast.expr) -> bool:
    words = config.keywords if isinstance(config, ast.Call) else []
    return any(
        word.arg == QUICK and isinstance(word.value, ast.Constant) and bool(word.value.value)
        for word in words
    )
