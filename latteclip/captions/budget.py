"""What answers cost: the price of one, and what all of them may cost together."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latteclip.captions.requests import CaptionerSettings, Response
from latteclip.config.amounts import MONEY, SECONDS, amount, amount_of, price
from latteclip.core.errors import UserError


def priced(answer: Response, settings: CaptionerSettings) -> Response:
    """Return an answer with its cost by the prices of tokens, unless its server says the cost.

    It stays unknown where nobody counts the tokens.
    """
    of_read = settings.price_input
    if answer.cost is not None or of_read is None or answer.n_read is None:
        return answer
    written = answer.n_tokens or 0
    cost = price(answer.n_read, written, of_read, settings.price_output)
    return replace(answer, cost=cost)


def cost_of(answers: Sequence[Response]) -> float:
    """Return the money that answers cost, as far as it is known."""
    return sum(answer.cost or 0.0 for answer in answers)


@dataclass
class Budget:
    """What all answers may cost, and what they cost so far."""

    limit: float
    unit: str  # MONEY, TOKENS or SECONDS
    key: str  # the key that limits this job alone
    spent: float = 0.0
    largest: float = 0.0  # cost of the dearest answer
    n: int = 0  # answers that were counted
    started: float | None = None  # when the first request was made, by time.monotonic

    @classmethod
    def of(cls, max_cost: float | str, shards: int, key: str) -> "Budget":
        """Return an equal part of the value of a key for each of some shards."""
        number, unit = amount_of(max_cost)
        return cls(number / shards, unit, key)

    def take(self, answer: Response) -> None:
        """Count an answer. UserError: nobody says what it cost."""
        cost = self._cost(answer)
        self.spent += cost
        self.largest = max(self.largest, cost)
        self.n += answer.error is None

    def _cost(self, answer: Response) -> float:
        if self.unit == SECONDS:
            return 0.0
        if self.unit == MONEY:
            known = answer.cost
            remedy = (
                "set captioner.price_input, the price of a million tokens, or give seconds where "
                "the server counts no tokens"
            )
        else:
            known = None
            if answer.n_read is not None:
                known = float(answer.n_read + (answer.n_tokens or 0))
            remedy = "give seconds or money"
        if known is None and answer.error is None:
            raise UserError(
                f"{self.key} limits {self.unit}, but the server does not say what an answer costs; "
                f"{remedy}. The answers so far are cached."
            )
        return known or 0.0

    @property
    def is_informed(self) -> bool:
        """Whether it is known what an answer costs."""
        return self.n > 0 or self.unit == SECONDS

    def has_room(self, under_way: int) -> bool:
        """Return whether one more answer is within the budget, with those under way.

        Each of them counts as the dearest answer so far.
        """
        if self.unit == SECONDS:
            return self._seconds() < self.limit
        expected = self.spent + (under_way + 1) * self.largest
        return self.spent < self.limit and expected <= self.limit

    def cost(self, n: int) -> str:
        """Return what n more answers would cost by the mean so far, in words."""
        spent = self._seconds() if self.unit == SECONDS else self.spent
        return amount(n * spent / max(1, self.n), self.unit)

    def start(self) -> None:
        """Begin to count seconds, unless they are counted already."""
        if self.started is None:
            self.started = time.monotonic()

    def _seconds(self) -> float:
        return 0.0 if self.started is None else time.monotonic() - self.started

    def ended(self, n: int, lack: str) -> str:
        """Return the sentences on an ended budget, where n images lack something."""
        limit = amount(self.limit, self.unit)
        return (
            f"The budget of {limit} ({self.key}, or a part of max_cost) is spent: {n} images were "
            f"not asked about and have no {lack}. To ask about them would cost about "
            f"{self.cost(n)}."
        )
