"""What a run would ask captioners, and at what cost, before anything is asked."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latteclip.captions.example_images import MAX_EXAMPLES
from latteclip.config import budgets, job_resources
from latteclip.config.amounts import MONEY, amount, amount_of, price
from latteclip.config.budgets import Asking
from latteclip.config.configuration import Configuration
from latteclip.config.job_resources import Counts
from latteclip.config.sections.captioner import LLAVA_NEXT, OVERVIEW
from latteclip.config.sections.scores import ScoresSection
from latteclip.core import tables
from latteclip.core.answer_tables import GROUPS, IMAGES, NAMES, SCORES
from latteclip.data.folder_files import image_files
from latteclip.report.runs import count_requests, read_answers

RESULTS = Path("results")
# Input tokens of a picture of OVERVIEW pixels with a prompt, for LLaVA-1.6 (docs/models.md).
LLAVA_TOKENS = 1_200
# Input tokens of decision models beside the tiles of a picture, as others measured them.
OF_PICTURE, OF_QUESTION = 95, 92
TITLES = {
    IMAGES: "captions of images",
    GROUPS: "captions of groups",
    NAMES: "names of images",
    SCORES: "class scores",
}
HOW_TO_KNOW = (
    "A run with limit=16 measures tokens, and the price if the server or captioner.price_input "
    "names it."
)


@dataclass(frozen=True)
class Cost:
    """The mean cost of a request, None where it is not known."""

    read: float | None = None  # tokens
    written: float | None = None  # tokens
    money: float | None = None
    source: str = ""  # how it is known


@dataclass(frozen=True)
class Plan:
    """The requests of an asking, and what they will cost."""

    name: str
    n: int | None  # None: the images are not counted yet
    is_most: bool  # whether the number is of all image files, as nothing is indexed yet
    cost: Cost  # cost of one request
    limit: budgets.MaxCost
    has_price: bool

    @property
    def tokens(self) -> float | None:
        """The tokens of all requests, None where they are not known."""
        if self.n is None or self.cost.read is None:
            return None
        return self.n * (self.cost.read + (self.cost.written or 0.0))

    @property
    def money(self) -> float | None:
        """The price of all requests within the limit, None where it is not known."""
        if self.n is None or self.cost.money is None:
            return None
        return min(self.n * self.cost.money, self.most)

    @property
    def most(self) -> float:
        """The money at which the limit ends the requests."""
        if self.limit is None:
            return math.inf
        number, unit = amount_of(self.limit)
        return number if unit == MONEY else math.inf

    @property
    def sentence(self) -> str:
        """The plan in words."""
        limit = f"ended at {amount(*amount_of(self.limit))}" if self.limit else ""
        if self.n is None:
            parts = ["not known before the images are indexed", limit]
            return f"{self.name}: {', '.join(filter(None, parts))}"
        requests = f"{'at most ' if self.is_most else ''}{self.n:,} requests"
        tokens = "tokens not known"
        if self.tokens is not None:
            tokens = f"about {self.tokens:,.0f} tokens"
        money = "price not known" if self.has_price else ""
        if self.cost.money is not None:
            money = f"price about {self.n * self.cost.money:.4g}"
        source = f" ({self.cost.source})" if self.cost.source else ""
        parts = [requests, tokens, money, limit]
        return f"{self.name}: {', '.join(filter(None, parts))}{source}"


def lines(
    configuration: Configuration, dataset: str, pending: Collection[str] | None = None
) -> Iterator[str]:
    """Yield what a run would ask about a dataset's images, and the price in all.

    `pending` are the files that the run will write. Without them, all askings count.
    """
    plans = [
        plan(configuration, dataset, asking)
        for asking in budgets.askings(configuration, dataset)
        if pending is None or asking.is_pending(dataset, pending)
    ]
    if not plans:
        return
    yield f"{dataset}: to ask, where answers are not cached:"
    for each in plans:
        yield f"  {each.sentence}"
    yield from _price_of_all([each for each in plans if each.has_price])


def _price_of_all(plans: Sequence[Plan]) -> Iterator[str]:
    """Yield the price of plans that have one, or the most that they may cost, as far as known."""
    if not plans:
        return
    prices = [each.money for each in plans]
    known = [money for money in prices if money is not None]
    if len(known) == len(plans):
        yield f"  in all: price about {sum(known):.4g}"
        return
    most = sum(
        each.most if money is None else money
        for each, money in zip(plans, prices, strict=True)
    )
    at_most = f", at most {most:.4g}" if most < math.inf else ""
    yield f"  in all: price not known{at_most}. {HOW_TO_KNOW}"


def values(configuration: Configuration, dataset: str) -> list[dict[str, Any]]:
    """Return what a run would ask, for programs; None where a number is not known."""
    rows = []
    for asking in budgets.askings(configuration, dataset):
        each = plan(configuration, dataset, asking)
        row = {
            "table": asking.table,
            "voter": asking.voter or None,
            "requests": each.n,
            "tokens": each.tokens,
            "price": each.money,
            "max_cost": each.limit,
            "source": each.cost.source or None,
        }
        rows.append(row)
    return rows


def plan(configuration: Configuration, dataset: str, asking: Asking) -> Plan:
    """Return the requests of an asking, and what they will cost."""
    model = configuration.section("captioner", dataset, asking.voter)["model"]
    of_voter = f" of the voter {asking.voter}" if asking.voter else ""
    cost = request_cost(configuration, dataset, asking)
    return Plan(
        name=f"{TITLES[asking.kind]}{of_voter} by {model}",
        n=n_requests(configuration, dataset, asking),
        is_most=job_resources.counts(configuration, dataset) is None,
        cost=cost,
        limit=budgets.max_cost(configuration, dataset, asking),
        has_price=budgets.has_price(configuration, dataset, asking)
        or cost.money is not None,
    )


def n_requests(configuration: Configuration, dataset: str, asking: Asking) -> int | None:
    """Return the requests of an asking without cached answers; None: images are not counted yet.

    Before the images are indexed, all files of a folder count.
    """
    images = job_resources.counts(configuration, dataset)
    if images is None:
        files = count_files(configuration, dataset)
        if files is None:
            return None
        images = Counts(files, 0, None)
    if asking.kind == SCORES:
        share = float(configuration.section("scores", dataset, asking.voter)["share"])
        return math.ceil(share * images.train)
    per_class = configuration.section("groups", dataset)["groups_per_class"]
    if asking.kind == GROUPS and per_class is not None and images.classes is not None:
        return min(images.train, int(per_class) * images.classes)
    return images.train


def count_files(configuration: Configuration, dataset: str) -> int | None:
    """Return the image files in the folder of a dataset, None where it has another source."""
    folder = configuration.dataset(dataset)["source"].get("folder")
    if not folder or configuration.section("split", dataset)["kind"] != "folders":
        return None
    return len(image_files(folder, deep=True))


def request_cost(configuration: Configuration, dataset: str, asking: Asking) -> Cost:
    """Return what a request costs: as one of this dataset did, or as is typical, if known."""
    captioner = configuration.section("captioner", dataset, asking.voter)
    cost = _measured(configuration, dataset, asking) or _typical(
        configuration, dataset, asking
    )
    prices = captioner["price_input"], captioner["price_output"]
    if prices[0] is None or cost.read is None:
        return cost
    return replace(cost, money=price(cost.read, cost.written or 0.0, *prices))


def _measured(configuration: Configuration, dataset: str, asking: Asking) -> Cost | None:
    """Return the mean cost of the answers in a table of this dataset, or of a limited run of it."""
    whole = configuration.whole(dataset)
    limited = sorted(RESULTS.glob(f"{whole}_[0-9]*"), key=lambda path: -_number(path.name))
    for folder in (RESULTS / dataset, *limited):
        path = folder / asking.table
        if not path.is_file():
            continue
        n = count_requests(path)
        model = configuration.section("captioner", dataset, asking.voter)["model"]
        if n and (described := read_answers(path)).source.model == model:
            read = described.tokens_read / n or None
            written = described.tokens_written / n
            return Cost(read, written, described.cost / n or None, f"as in {folder}")
    return None


def _number(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0


def _typical(configuration: Configuration, dataset: str, asking: Asking) -> Cost:
    """Return the cost that is typical of a model, as far as one is known."""
    captioner = configuration.section("captioner", dataset, asking.voter)
    if configuration.engine(dataset, asking.voter).decides:
        return _of_decisions(configuration, dataset, asking)
    is_llava = LLAVA_NEXT.search(captioner["model"]) is not None
    if is_llava and captioner["square_side"] == OVERVIEW and asking.kind == IMAGES:
        written = float(captioner["max_new_tokens"])
        return Cost(LLAVA_TOKENS, written, source="typical, answers of full length")
    return Cost()


def _of_decisions(configuration: Configuration, dataset: str, asking: Asking) -> Cost:
    """Return the input tokens of a decision by the sizes of the images.

    Before the images are indexed, each is taken to be as large as pictures are sent.
    """
    index = RESULTS / dataset / "images.parquet"
    captioner = configuration.section("captioner", dataset, asking.voter)
    scores = ScoresSection(**configuration.section("scores", dataset, asking.voter))
    source = "typical, by the sizes of the images"
    if index.is_file():
        columns = tables.read(index, tables.IMAGES, ["split", "width", "height"])
        sizes = [
            _sent(captioner, row["width"], row["height"])
            for row in columns.to_pylist()
            if row["split"] != "test"
        ]
    else:
        side = captioner["square_side"] or captioner["max_image_side"]
        if side is None:
            return Cost()
        sizes = [(side, side)]
        source = "typical, if all pictures are as large as captioner allows"
    from latteclip.captions.engines.decisions import fitted, tiles

    shown = 1 + scores.examples * min(MAX_EXAMPLES, scores.topk)
    n_tiles = shown * sum(tiles(fitted(*size)) for size in sizes) / max(1, len(sizes))
    read = n_tiles + shown * OF_PICTURE + scores.orders * OF_QUESTION
    return Cost(read, 0.0, source=source)


def _sent(captioner: dict[str, Any], width: int, height: int) -> tuple[int, int]:
    """Return the size of a picture as it is sent."""
    if captioner["square_side"] is not None:
        return captioner["square_side"], captioner["square_side"]
    most = captioner["max_image_side"] or max(width, height)
    scale = min(1.0, most / max(width, height))
    return max(1, round(scale * width)), max(1, round(scale * height))
