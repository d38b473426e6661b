"""Templates filled to one self-contained page: everything is escaped, nothing is fetched."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from latteclip.core.terminal import counted

PACKAGE = "latteclip.report"


def render(template: str, **values: Any) -> str:
    """Fill a template of this package, with its style and its script inside the page.

    The page's policy allows one script and no connection: even a text that slipped through the
    escaping would not run.
    """
    return fill(PACKAGE, template, ["page.js"], "img-src data:", **values)[0]


def fill(
    package: str, template: str, scripts: Sequence[str], sources: str, **values: Any
) -> tuple[str, str]:
    """Fill a template of a package, and return the page and its policy.

    The scripts lie beside the templates and run as one. The policy allows these `sources`.
    """
    templates = environment(package)
    script = "\n".join(_text(templates, name) for name in scripts)
    allowed = policy(script, sources)
    page = templates.get_template(template).render(
        policy=allowed,
        style=Markup(_text(templates, "page.css")),
        script=Markup(script),
        **values,
    )
    return page, allowed


def _text(templates: Environment, name: str) -> str:
    """Return the text of a file beside the templates."""
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0]


def environment(package: str) -> Environment:
    """Return templates, which escape every value and allow no missing one.

    They are those of a package, and those of this one, which all pages extend.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(PACKAGE)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (number, signed, breakable, duration, memory, counted)
    templates.filters |= {function.__name__: function for function in formats}
    return templates


def policy(script: str, sources: str) -> str:
    """Return a Content-Security-Policy: one script, styles inside the page, and `sources`."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; {sources}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def number(value: float | None, digits: int = 1) -> str:
    """Format a number, a dash where it is not known."""
    return "–" if value is None else f"{value:,.{digits}f}"  # noqa: RUF001


def signed(value: float | None, digits: int = 1) -> str:
    """Format a difference with its sign, a minus as wide as the plus."""
    if value is None:
        return number(None)
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")  # noqa: RUF001


def breakable(name: str) -> Markup:
    """Allow a line break after each underscore of a name."""
    return Markup("_<wbr>").join(name.split("_"))


def duration(seconds: float | None) -> str:
    """Format seconds as 41 s, 3 min 05 s or 2 h 07 min."""
    if seconds is None:
        return number(None)
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"


def memory(mebibytes: float | None) -> str:
    """Format memory as MiB or GiB."""
    if mebibytes is None:
        return number(None)
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"
