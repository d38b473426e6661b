"""Command lines made from the signatures and the documentation of the functions of commands.

A command (with dashes) and its function have one name. The source text of the module is read, so
that --help imports nothing heavy.

Parameters before `/` are positional, and so is the first list of a function without a default. All
others are options, without the ending _path, _paths, _files or _output. A Literal gives the
choices, and a dataclass is an option in JSON.
"""

import argparse
import ast
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

from latteclip.core.settings import from_json, list_from_json

MAX_NUMBER = 2**63 - 1
SHORT = {"n": ["-n"], "output": ["-o"], "topk": ["-k"]}  # further flags of options
ALTERNATIVES = (("offline", "answers", "score"), ("max_error", "false_discovery"))


def count(least: int = 0, most: int = MAX_NUMBER) -> Callable[[str], int]:
    """Return the argparse type of a whole number from `least` to `most`."""

    def parsed(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # also of thousands of digits
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {least} to {most}, not {text[:40]!r}"
            )
        return number

    return parsed


def share(text: str) -> float:
    """Return a share between 0 and 1 of the command line."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 1")
    return value


# Arguments that are not those of their parameter.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "arguments": {"nargs": argparse.REMAINDER, "metavar": "ARGUMENT"},
    "threads": {
        **{"type": count(1, os.cpu_count() or 1), "default": os.cpu_count()},
        "help": "CPU threads (default: all)",
    },
    "device": {"default": "auto", "help": "auto, cpu, cuda or cuda:<n> (default: auto)"},
}


def add_arguments(parser: argparse.ArgumentParser, module: str, name: str) -> None:
    """Add the arguments of a command, and describe them by the documentation of its function."""
    function = _function(module, name)
    helps = _describe(parser, ast.get_docstring(function) or "")
    positional = [parameter.arg for parameter in function.args.posonlyargs]
    parameters = _parameters(function.args)
    places: dict[str, Any] = {}
    for names in ALTERNATIVES:
        if any(parameter.arg == names[0] for parameter, _ in parameters):
            places |= dict.fromkeys(names, parser.add_mutually_exclusive_group())
    for parameter, default in parameters:
        words = {"help": helps.get(parameter.arg), **_words(parameter, default)}
        words |= ARGUMENTS.get(parameter.arg, {})
        if words.get("nargs") == "+" and not positional:
            positional.append(parameter.arg)
        if parameter.arg in positional:
            parser.add_argument(parameter.arg, **words)
        else:
            _add_option(places.get(parameter.arg, parser), parameter.arg, words)


def _parameters(signature: ast.arguments) -> list[tuple[ast.arg, ast.expr | None]]:
    """Return the parameters with their defaults; None: there is no default."""
    first = [*signature.posonlyargs, *signature.args]
    defaults = [*[None] * (len(first) - len(signature.defaults)), *signature.defaults]
    keywords = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
    return [*zip(first, defaults, strict=True), *keywords]


def _add_option(place: Any, parameter: str, words: dict[str, Any]) -> None:
    """Add the option of a parameter, which is required without a default."""
    option = re.sub(r"_(paths?|files|output)$", "", parameter).replace("_", "-")
    if "action" not in words and "choices" not in words:
        words["metavar"] = option.upper()
    if "nargs" in words:
        words |= {"nargs": "*", "action": "extend", "default": []}
    elif "default" not in words and "action" not in words:
        words["required"] = True
    place.add_argument(f"--{option}", *SHORT.get(option, ()), dest=parameter, **words)


def _describe(parser: argparse.ArgumentParser, text: str) -> dict[str, str]:
    """Describe a command by its documentation, and return what this says about each parameter."""
    text, _, about = text.replace("%", "%%").partition("Args:\n")
    parser.description, _, parser.epilog = text.partition("\n\n")
    if "\n  " in parser.epilog:  # it is laid out
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return dict(re.findall(r"^    (\w+): (.+(?:\n      .+)*)", about, re.M))


def _words(parameter: ast.arg, default: ast.expr | None) -> dict[str, Any]:
    """Return the type, the choices and the default of a parameter for argparse."""
    kind = ast.unparse(parameter.annotation) if parameter.annotation else "str"
    if kind == "bool":
        return {"action": "store_true"}
    words: dict[str, Any] = {}
    if default is not None or kind.endswith("| None"):
        words["default"] = None if default is None else ast.literal_eval(default)
    if choices := re.search(r"Literal\[(.+?)\]", kind):
        words["choices"] = ast.literal_eval(f"({choices[1]},)")
    if re.match(r"(Sequence|list)\[(str|Literal)", kind):
        words["nargs"] = "*" if "default" in words else "+"
    for name, of_text in (("int", count()), ("float", share)):
        if kind.partition(" ")[0] == name:
            words["type"] = of_text
    return words


def _function(module: str, name: str) -> ast.FunctionDef:
    """Return the syntax tree of a function of a module."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)


def call(function: Callable[..., Any], arguments: argparse.Namespace) -> Any:
    """Call the function of a command with the values of its arguments."""
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    values = {
        parameter.name: _value(
            hints[parameter.name], getattr(arguments, parameter.name), parameter.name
        )
        for parameter in parameters
    }
    positional = [values.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY]
    return function(*positional, **values)


def _value(hint: Any, given: Any, name: str) -> Any:
    """Return the value of a parameter: of a dataclass, or a list of some, the argument is JSON."""
    if is_dataclass(hint):
        return from_json(hint, given)  # type: ignore[arg-type]
    if any(map(is_dataclass, inner := get_args(hint))):
        return list_from_json(inner[0], given, name)
    return given
