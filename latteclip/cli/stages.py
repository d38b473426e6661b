"""Command lines of the workflow's stages, made from the signatures of their functions.

A rule, its command (with dashes) and its function have one name. A stage's module is imported only
when its command runs. Until then its source text is read, so that --help answers at once.

A parameter is an option without its ending _path, _paths, _files or _output. The first list that
has no default is positional, and a dataclass is an option in JSON.
"""

import argparse
import ast
import os
import re
from dataclasses import is_dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

from latteclip.cli.commands import count, threads
from latteclip.core.settings import from_json, list_from_json

STAGES = {  # by command: the module of its function
    "generate_textures": "latteclip.demo.generate_textures",
    "download_dataset": "latteclip.data.download_dataset",
    "download_clip": "latteclip.data.download_models",
    "download_captioner": "latteclip.data.download_models",
    "download_eye": "latteclip.data.download_models",
    "index_images": "latteclip.data.index_images",
    "find_duplicates": "latteclip.data.find_duplicates",
    "encode_images": "latteclip.labels.encode_images",
    "pseudo_label_images": "latteclip.labels.pseudo_label_images",
    "caption_images": "latteclip.captions.caption",
    "caption_groups": "latteclip.captions.caption",
    "score_classes": "latteclip.captions.score_classes",
    "gather_captions": "latteclip.captions.gather_captions",
    "summarize_captions": "latteclip.captions.summarize_captions",
    "calibrate_zero_shot": "latteclip.labels.calibrate_zero_shot",
    "fuse_labels": "latteclip.labels.fuse_labels",
    "score_unknown": "latteclip.labels.score_unknown",
    "assemble_model": "latteclip.deploy.assemble_model",
    "find_learning_rate": "latteclip.train.find_learning_rate",
    "finetune": "latteclip.train.finetune",
    "average_weights": "latteclip.deploy.average_weights",
    "evaluate": "latteclip.evaluate.evaluate",
    "evaluate_classifier": "latteclip.evaluate.evaluate_classifier",
    "propagate_labels": "latteclip.evaluate.propagate_labels",
    "score_audit": "latteclip.audit.score_audit",
    "select_model": "latteclip.evaluate.select_model",
    "summarize": "latteclip.evaluate.summarize",
    "report_dataset": "latteclip.report.report_dataset",
    "index_results": "latteclip.report.index_results",
}
# Options whose default or bounds are not those of the parameter.
OPTIONS: dict[str, dict[str, Any]] = {
    "threads": {"type": threads(), "default": os.cpu_count(), "help": "CPU threads"},
    "device": {"default": "auto", "help": "auto, cpu, cuda or cuda:<n>"},
}


def add_arguments(parser: argparse.ArgumentParser, stage: str) -> None:
    """Add the options of a stage, and describe them by the documentation of its function."""
    function = _function(stage)
    text = (ast.get_docstring(function) or "").replace("%", "%%")
    parser.description = text.partition("\n")[0]
    helps = dict(re.findall(r"^    (\w+): (.+(?:\n      .+)*)", text, re.M))
    free: list[ast.expr | None] = [None] * len(function.args.args)
    defaults = (free + function.args.defaults)[-len(free) :] if free else []
    pairs = [*zip(function.args.args, defaults, strict=True)]
    pairs += zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    has_positional = False
    for parameter, default in pairs:
        kind = ast.unparse(parameter.annotation) if parameter.annotation else "str"
        required = default is None and not kind.endswith("| None")
        option = re.sub(r"_(paths?|files|output)$", "", parameter.arg).replace("_", "-")
        words: dict[str, Any] = {"help": helps.get(parameter.arg), "metavar": option.upper()}
        words["required"] = required
        if default is not None:
            words["default"] = ast.literal_eval(default)
        if kind in ("Sequence[str]", "list[str]"):
            if required and not has_positional:
                has_positional = True
                parser.add_argument(parameter.arg, nargs="+", metavar=option, help=words["help"])
                continue
            words |= {"nargs": "*", "default": [], "required": False}
        elif kind == "int":
            words["type"] = count(0, 2**63 - 1)
        elif kind == "bool":
            words = {"help": words["help"], "action": "store_true"}
        words = OPTIONS.get(parameter.arg, words)
        parser.add_argument(f"--{option}", dest=parameter.arg, **words)


def run(stage: str, arguments: argparse.Namespace) -> None:
    """Import the function of a stage and call it with the values of its options."""
    # Read when torch first uses the GPU: texts of several lengths leave no gaps in its memory.
    if stage == "finetune" and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    function = getattr(import_module(STAGES[stage]), stage)
    hints = get_type_hints(function)
    del hints["return"]
    function(**{name: _value(hint, getattr(arguments, name), name) for name, hint in hints.items()})


def _value(hint: Any, given: Any, name: str) -> Any:
    """Return what a parameter gets: of a dataclass, or a list of some, the option is JSON."""
    if is_dataclass(hint):
        return from_json(hint, given)  # type: ignore[arg-type]
    if any(map(is_dataclass, inner := get_args(hint))):
        return list_from_json(inner[0], given, name)
    return given


def _function(stage: str) -> ast.FunctionDef:
    """Return the syntax tree of a stage's function."""
    spec = find_spec(STAGES[stage])
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == stage)
