"""Templates filled to one self-contained page: everything is escaped, nothing is fetched."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from latteclip.core.terminal import counted

PACKAGE = "latteclip.report"
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # no script and no connection


def render(template: str, **values: Any) -> str:
    """Fill a template of this package: a page without a script, whose policy allows none."""
    page = environment(PACKAGE).get_template(template)
    return page.render(policy=f"{POLICY}; img-src data:", script="", **values)


def fill(
    package: str, template: str, scripts: Sequence[str], sources: str, **values: Any
) -> tuple[str, str]:
    """Fill a template of a package, and return the page and its policy.

    The scripts lie beside the templates and run as one. The policy allows them and the `sources`.
    """
    templates = environment(package)
    assert templates.loader is not None
    texts = [templates.loader.get_source(templates, name)[0] for name in scripts]
    script = "\n".join(texts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"{POLICY}; {sources}; script-src 'sha256-{digest}'"
    page = templates.get_template(template)
    return page.render(policy=policy, script=Markup(script), **values), policy


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
    templates.filters |= {"number": number, "signed": signed, "counted": counted}
    return templates


def number(value: float | None, digits: int = 1) -> str:
    """Format a number, a dash where it is not known."""
    return "–" if value is None else f"{value:,.{digits}f}"  # noqa: RUF001


def signed(value: float | None) -> str:
    """Format a difference with its sign, a dash where it is not known."""
    return "–" if value is None else f"{value:+.1f}"  # noqa: RUF001
