"""Templates filled to one self-contained page: everything is escaped, nothing is fetched."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latteclip.core.terminal import counted

FOLDER = Path(__file__).with_name("templates")
# Of pages on which a person answers: no stage of the workflow writes them.
SERVED = Path(__file__).with_name("served")
# No script and no connection.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(template: str, **values: Any) -> str:
    """Fill a template: a page without a script, whose policy allows none."""
    page = environment().get_template(template)
    return page.render(policy=f"{POLICY}; img-src data:", script="", **values)


def fill(
    template: str, scripts: Sequence[str], sources: str, **values: Any
) -> tuple[str, str]:
    """Fill a template, and return the page and its policy.

    The scripts lie beside the served templates and run as one. The policy allows them and the
    `sources`.
    """
    script = "\n".join((SERVED / name).read_text("utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"{POLICY}; {sources}; script-src 'sha256-{digest}'"
    page = environment().get_template(template)
    return page.render(policy=policy, script=Markup(script), **values), policy


def environment() -> Environment:
    """Return the templates, which escape every value and allow no missing one."""
    templates = Environment(
        loader=FileSystemLoader([FOLDER, SERVED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "counted": counted}
    return templates


def number(value: float | None, digits: int = 1, sign: str = "") -> str:
    """Format a number, with its sign where `sign` is "+", a dash where it is not known."""
    return "–" if value is None else f"{value:{sign},.{digits}f}"  # noqa: RUF001
