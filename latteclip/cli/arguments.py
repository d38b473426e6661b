"""Command lines made from the signatures and the documentation of the functions of commands.

A command (with dashes) and its function have one name. The source text of the module is read, so
that --help imports nothing heavy.

Parameters before `/` are positional, and so is the first list of a function without a default. All
others are options, without the ending _path, _paths, _files or _output. A Literal gives the
choices, and a section of the configuration or a dataclass is an option in JSON.
"""

import argparse
import ast
import inspect
import os
import re
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from latteclip.core.devices import DEVICES, cores
from latteclip.core.errors import UserError
from latteclip.core.files import from_json
from latteclip.core.run_options import refuse_no_results

SHORT = {"output": ["-o"], "topk": ["-k"]}  # further flags of options


def positive(text: str) -> int:
    """Return a whole number from 1 of the command line."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def share(text: str) -> float:
    """Return a share between 0 and 1 of the command line."""
    if not 0 < (value := float(text)) < 1:
        raise ValueError
    return value


# Arguments that are not those of their parameter.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "seed": {"type": int},
    "checkpoint_minutes": {"type": float},
    "mixing": {"type": float},
    "threads": {"type": positive, "default": cores()},
    "device": {"choices": DEVICES, "default": "auto"},
}
# Arguments that the documentation of their function leaves out, for commands share most of them.
# Rules call the stages, whose options have the names of files and settings.
OPTIONS = {
    "answers": "a person's answers about images",
    "configfile": "as snakemake takes it",
    "device": "auto, cpu or cuda (default: auto)",
    "json": "print JSON for programs",
    "no_browser": "print the address, and open no browser",
    "offline": "write a page that needs no server, to answer on another machine",
    "port": "port of the page (default: any free port)",
    "results": "a dataset's folder: results/<dataset>",
    "threads": "CPU threads (default: all)",
}


def refuse_no_answers(path: str) -> None:
    """Raise UserError where --answers names no file."""
    if not Path(path).is_file():
        raise UserError(f"--answers {path} names no file; check its spelling.")


# Arguments of people that are checked before the module of the command is imported.
CHECKS = {"results": refuse_no_results, "answers": refuse_no_answers}


def add_arguments(parser: argparse.ArgumentParser, module: str, name: str) -> None:
    """Add the arguments of a command, and describe them by the documentation of its function."""
    function = _function(module, name)
    text, _, about = (
        (ast.get_docstring(function) or "").replace("%", "%%").partition("Args:\n")
    )
    parser.description, _, parser.epilog = text.partition("\n\n")
    if "\n  " in parser.epilog:  # it is laid out
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
    helps = OPTIONS | dict(
        re.findall(r"^    (\w+): (.+(?:\n      .+)*)", about, re.M)
    )
    positional = [parameter.arg for parameter in function.args.posonlyargs]
    for parameter, default in _parameters(function.args):
        dest = parameter.arg
        option = re.sub(r"_(paths?|files|output)$", "", dest)
        options: dict[str, Any] = {"help": helps.get(dest, helps.get(option))}
        options |= {**_words(parameter, default), **ARGUMENTS.get(dest, {})}
        if options.get("nargs") == "+" and not positional:
            positional.append(dest)
        if dest in positional:
            parser.add_argument(dest, **options)
        else:
            _add_option(parser, option.replace("_", "-"), dest=dest, **options)


def _parameters(signature: ast.arguments) -> list[tuple[ast.arg, ast.expr | None]]:
    """Return the parameters with their defaults; None: there is no default."""
    first = [*signature.posonlyargs, *signature.args]
    defaults = [
        *[None] * (len(first) - len(signature.defaults)),
        *signature.defaults,
    ]
    keywords = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
    return [*zip(first, defaults, strict=True), *keywords]


def _add_option(
    parser: argparse.ArgumentParser, option: str, **options: Any
) -> None:
    if "action" not in options and "choices" not in options:
        options["metavar"] = option.upper()
    if "nargs" in options:
        options |= {"nargs": "*", "action": "extend", "default": []}
    elif "default" not in options and "action" not in options:
        options["required"] = True
    parser.add_argument(f"--{option}", *SHORT.get(option, ()), **options)


def _words(parameter: ast.arg, default: ast.expr | None) -> dict[str, Any]:
    """Return the type, the choices and the default of a parameter for argparse."""
    kind = ast.unparse(parameter.annotation) if parameter.annotation else "str"
    if kind == "bool":
        return {"action": "store_true"}
    options: dict[str, Any] = {}
    if default is not None or kind.endswith("| None"):
        options["default"] = None if default is None else ast.literal_eval(default)
    if choices := re.search(r"Literal\[(.+?)\]", kind):
        options["choices"] = ast.literal_eval(f"({choices[1]},)")
    if re.match(r"(Sequence|list)\[(str|Literal)", kind):
        options["nargs"] = "*" if "default" in options else "+"
    for name, of_text in (("int", positive), ("float", share)):
        if kind.partition(" ")[0] == name:
            options["type"] = of_text
    return options


def first_line(module: str, name: str) -> str:
    """Return the first line of the documentation of a command."""
    return (ast.get_docstring(_function(module, name)) or "").partition("\n")[0]


@cache
def _function(module: str, name: str) -> ast.FunctionDef:
    file = (
        Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
    )
    tree = ast.parse(file.read_bytes())
    return next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )


def run(module: str, name: str, arguments: argparse.Namespace) -> Any:
    """Import the function of a command, and call it with the values of its arguments."""
    # Read when torch first uses the GPU: texts of several lengths leave no gaps in its memory.
    if name == "finetune" and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault(
            "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"
        )
    for key, check in CHECKS.items():
        if given := getattr(arguments, key, None):
            check(given)
    if "no_browser" in arguments:
        print("Preparing ...", flush=True)  # imports take seconds
    function = getattr(import_module(module), name)
    hints = get_type_hints(function)
    signature = inspect.signature(function)
    values = {key: getattr(arguments, key) for key in signature.parameters}
    for key, text in values.items():
        # Or a list of some.
        if any(map(_is_record, (hints[key], *get_args(hints[key])))):
            values[key] = from_json(hints[key], text, key)
    bound = inspect.BoundArguments(signature, values)
    return function(*bound.args, **bound.kwargs)


def _is_record(kind: Any) -> bool:
    """Return whether a type is a dataclass, or a section of the configuration."""
    from pydantic import BaseModel  # here: --help does without

    return is_dataclass(kind) or (
        isinstance(kind, type) and issubclass(kind, BaseModel)
    )
