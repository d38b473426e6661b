"""YAML of people: read within bounds, and found to hold nothing that JSON cannot."""

from pathlib import Path
from typing import Any

import yaml

from latteclip.core.errors import UserError
from latteclip.core.foreign import in_short
from latteclip.core.paths import irregular
from latteclip.core.plain_values import refuse_unfit

LARGEST = 2**24  # bytes of a file
# By libyaml, where PyYAML was built with it: a tenth of the time.
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(file: Path) -> dict[str, Any]:
    """The keys and values of a configuration file; none where there is no such file.

    Raises:
        UserError: it cannot be read, is not valid YAML, or holds something else.
    """
    what = f"Configuration file {file}"
    content = parsed(_text(file, what), what)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{what} must hold keys with values, not {in_short(repr(content), 80)}.")
    refuse_unfit(content, what)
    return content


def _text(file: Path, what: str) -> str:
    try:
        if kind := irregular(file):
            raise UserError(f"{what} is {kind}; put a file there, or remove it.")
        if file.stat().st_size > LARGEST:
            raise UserError(f"{what} is larger than {LARGEST} bytes; shorten it.")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"{what} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8 at byte {error.start}; save it as UTF-8.") from None


def parsed(text: str, what: str) -> Any:
    """The value of a YAML text.

    Args:
        text: of a file or of one value.
        what: its name in messages.

    Raises:
        UserError: it is not valid YAML.
    """
    try:
        return loaded(text)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{what} is not valid YAML: {_fault(error, text)}.") from None
    except RecursionError:
        raise UserError(f"{what} is not valid YAML: it is nested too deeply.") from None
    # For a value that only looks like a date or a number, PyYAML raises whatever Python does.
    except Exception as error:
        raise UserError(f"{what} is not valid YAML: {in_short(error)}.") from None


def loaded(text: str) -> Any:
    """Return what `yaml.safe_load` does, sooner, but refuse a key that is there twice."""
    try:
        return _loaded(text, FAST)
    except Exception:
        return _loaded(text, yaml.SafeLoader)


def _loaded(text: str, kind: Any) -> Any:
    loader = kind(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_repeated_keys(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_repeated_keys(root: yaml.Node) -> None:
    """Raise MarkedYAMLError for a mapping with a key twice: YAML's last one would win silently."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):  # an alias names the same node
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    reason = f"the key {in_short(key.value, 80)} is there twice; remove one"
                    raise yaml.MarkedYAMLError(problem=reason, problem_mark=key.start_mark)
                keys.add((key.tag, key.value))
            waiting += (key, value)


def _fault(error: yaml.MarkedYAMLError, text: str) -> str:
    """Where the mistake is, and which; a bracket that is never closed is told where it opens."""
    lines = text.splitlines()
    marks = [mark for mark in (error.problem_mark, error.context_mark) if mark]
    mark = next((mark for mark in marks if _line(lines, mark.line)), None)
    reason = in_short(error.problem or error.context or "it cannot be understood")
    if mark is None:
        return reason
    return f"line {mark.line + 1}, {_line(lines, mark.line)!r}, {reason}"


def _line(lines: list[str], number: int) -> str:
    return in_short(lines[number], 80) if number < len(lines) else ""
