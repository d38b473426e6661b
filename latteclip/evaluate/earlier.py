"""What earlier runs left of other datasets, which the tables over datasets show as well."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate.audited import Audit, read_audit
from latteclip.evaluate.results import Selection, read_metrics, read_selection

log = logging.getLogger(__name__)


@dataclass
class Found:
    """Metrics of runs, and of datasets the chosen models and the audits."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    selections: list[Selection] = field(default_factory=list)
    audits: dict[str, Audit] = field(default_factory=dict)


def earlier(folder: str | None, besides: Collection[str]) -> Found:
    """Read what is in a folder of results of datasets that are not among those of this run.

    A dataset of which a file is broken is left out with a warning.
    """
    found = Found()
    # Where a storage keeps the results, the folder need not be there.
    for place in sorted(Path(folder).glob("*")) if folder else []:
        paths = sorted(place.glob("*/seed*/metrics.json"))
        if place.name in besides or not paths:
            continue
        try:
            if _is_limited(place):
                continue
            metrics = [read_metrics(path) for path in paths]
            selected, answered = place / "selection.json", place / "audit.json"
            selections = [read_selection(selected)] if selected.is_file() else []
            audits = {place.name: read_audit(str(answered))} if answered.is_file() else {}
        except UserError as error:
            log.warning("%s is left out of the table: %s", place.name, error)
            continue
        found.metrics += metrics
        found.selections += selections
        found.audits |= audits
    return found


def _is_limited(place: Path) -> bool:
    """Return whether the results are of a limited run, which has a table of its own."""
    index = place / "images.parquet"
    return index.is_file() and "limit" in tables.read_metadata(index, "image_id")
