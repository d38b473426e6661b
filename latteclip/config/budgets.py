"""What answers about a dataset's images may cost: the limit of each job that asks a captioner."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from latteclip.config.amounts import MONEY, amount_of, as_max_cost
from latteclip.config.configuration import Configuration
from latteclip.core.answer_tables import IMAGES, NAMES, SCORES, TABLES, voter_table

MaxCost = float | str | None


@dataclass(frozen=True)
class Asking:
    """What a captioner is asked for: captions of images or groups, names of images, or scores."""

    kind: str  # a key of TABLES
    voter: str = ""  # name of a voter; empty: the captioner of the run

    @property
    def section(self) -> str:
        """The section with the limit of this asking alone."""
        return "scores" if self.kind == SCORES else "captioner"

    @property
    def table(self) -> str:
        """The table of the answers, below the results of a dataset."""
        return voter_table(self.voter) if self.voter else TABLES[self.kind]

    def is_pending(self, dataset: str, pending: Collection[str]) -> bool:
        """Return whether the table, or a shard of it, is among the files that a run will write."""
        results = f"results/{dataset}"
        shards = f"{results}/captions/shards/{PurePath(self.table).stem}-"
        return any(file.startswith((f"{results}/{self.table}", shards)) for file in pending)


def askings(configuration: Configuration, dataset: str) -> list[Asking]:
    """Return all that captioners are asked for about the images of a dataset."""
    asked = [Asking(f"{kind}s") for kind in configuration.caption_kinds(dataset)]
    if configuration.scores_classes(dataset):
        asked.append(Asking(SCORES))
    if configuration.discovers(dataset):
        asked.append(Asking(NAMES))
    for voter in configuration.own_voters(dataset):
        if voter.record.asks is not None:
            kind = SCORES if voter.record.asks == "scores" else IMAGES
            asked.append(Asking(kind, voter.name))
    return [
        asking
        for asking in asked
        if not configuration.engine(dataset, asking.voter).reads_file
    ]


def own_limit(configuration: Configuration, dataset: str, asking: Asking) -> MaxCost:
    """Return the limit of one asking alone."""
    limit: MaxCost = configuration.section(asking.section, dataset, asking.voter)[
        "max_cost"
    ]
    return limit


def max_cost(configuration: Configuration, dataset: str, asking: Asking) -> MaxCost:
    """Return what an asking may cost: its own limit, or its part of the limit of all if less.

    A model that runs here, without a price, takes no part of money.
    """
    own = own_limit(configuration, dataset, asking)
    whole: MaxCost = configuration.section("max_cost", dataset)
    if whole is None:
        return own
    number, unit = amount_of(whole)
    limits: dict[Asking, float | None] = {}
    for other in askings(configuration, dataset):
        if unit != MONEY or has_price(configuration, dataset, other):
            limit = own_limit(configuration, dataset, other)
            limits[other] = None if limit is None else amount_of(limit)[0]
    if asking not in limits:
        return own
    return as_max_cost(equal_parts(number, limits)[asking], unit)


def has_price(configuration: Configuration, dataset: str, asking: Asking) -> bool:
    """Return whether answers may cost money."""
    price = configuration.section("captioner", dataset, asking.voter)["price_input"]
    asks_server = configuration.engine(dataset, asking.voter).address is not None
    return price is not None or asks_server


def equal_parts(whole: float, limits: Mapping[Asking, float | None]) -> dict[Asking, float]:
    """Return equal parts of a whole, none above its limit; the others share what a limit leaves."""
    parts: dict[Asking, float] = {}
    waiting = dict(limits)
    while waiting:
        part = (whole - sum(parts.values())) / len(waiting)
        small = {
            asking: limit
            for asking, limit in waiting.items()
            if limit is not None and limit < part
        }
        if not small:
            return parts | dict.fromkeys(waiting, part)
        parts |= small
        for asking in small:
            del waiting[asking]
    return parts
