"""The page of an audit: one template for the server's and for the file that works offline."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from latteclip.audit.session import ALL_OFFERED, Session
from latteclip.report import render

PACKAGE, TEMPLATE = "latteclip.audit", "audit.html"


def page(session: Session, sources: str, values: Mapping[str, Any]) -> tuple[str, str]:
    """The page, and the policy that forbids it all but what it needs.

    Args:
        session: the audit.
        sources: directives of the policy beside style and script.
        values: what the script is told.
    """
    folder = files(PACKAGE) / "templates"
    script = (folder / "audit.js").read_text(encoding="utf-8")
    style = render.style() + (folder / "audit.css").read_text(encoding="utf-8")
    policy = render.policy(script, sources)
    text = (
        render.environment(PACKAGE)
        .get_template(TEMPLATE)
        .render(
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            dataset=session.audited.dataset,
            split=session.audited.split,
            classnames=sorted(session.audited.classnames),
            all_offered=len(session.audited.classnames) <= ALL_OFFERED,
            answered=session.answered() if values["offline"] else 0,
            total=session.total,
            values={"dataset": session.audited.dataset, **values},
        )
    )
    return text, policy
