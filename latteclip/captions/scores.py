"""What an engine says of the choices of a request, in the form in which the store keeps answers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latteclip.captions import kept
from latteclip.captions.answers import Answer

REASON = "scores"  # what `finish_reason` says of such answers
ROUNDING = 1e-3  # by which a log-probability may be above zero
LOWEST = -1e300  # of a log-probability that is not minus infinity


@dataclass(frozen=True)
class Scores:
    """Natural log-probabilities of the choices, in their order.

    A row for each prompt: one of likelihoods, and of letters one for each order of the options.
    """

    log_probabilities: tuple[tuple[float, ...], ...]
    first: tuple[str, ...] = ()  # of letters: the most likely first token after each prompt


def as_answer(scores: Scores, n_tokens: int) -> Answer:
    """Scores as JSON; an error where one of them is not a number."""
    rows = scores.log_probabilities
    if any(math.isnan(value) for row in rows for value in row):
        return Answer(
            "",
            "error",
            None,
            "the model's log-probabilities are not numbers; set captioner.dtype to bfloat16 or "
            "float32",
        )
    # JSON has no word for minus infinity.
    numbers = [[round(v, 6) if math.isfinite(v) else None for v in row] for row in rows]
    text = json.dumps({"log_probabilities": numbers, "first": scores.first}, ensure_ascii=False)
    return Answer(text, REASON, n_tokens)


def read_scores(text: str) -> Scores | None:
    """Scores from the text of an answer; None where it holds something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != {"log_probabilities", "first"}:
        return None
    rows, first = found["log_probabilities"], found["first"]
    if not _is_list_of(list, rows) or not _is_list_of(str, first):
        return None
    if not all(value is None or is_log_probability(value) for row in rows for value in row):
        return None
    values = (tuple(-math.inf if value is None else value for value in row) for row in rows)
    return Scores(tuple(values), tuple(first))


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def is_log_probability(value: Any) -> bool:
    """Whether a value is a finite log-probability, but for rounding."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and LOWEST <= value <= ROUNDING


def fault(answer: Mapping[str, Any]) -> str | None:
    """What is wrong with an answer as the store of scores keeps it; None where nothing is."""
    if (wrong := kept.fault(answer)) is not None:
        return wrong
    if answer["finish_reason"] != REASON or read_scores(answer["text"]) is None:
        return "it holds no log-probabilities"
    return None


def summed(values: Sequence[float]) -> float:
    """The logarithm of the sum of probabilities that are given as logarithms."""
    largest = max(values, default=-math.inf)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def log_normalised(values: Sequence[float]) -> list[float] | None:
    """Log-probabilities that sum to one as probabilities; None where all are minus infinity."""
    total = summed(values)
    return None if total == -math.inf else [value - total for value in values]
