"""The question that is answered with a letter, and what the letters say of its options.

Letters of formulas: K options of an image.
"""

import string
from collections.abc import Sequence

from latteclip.captions.scores import log_normalised
from latteclip.core.hashing import digest

MOST = len(string.ascii_uppercase) - 1  # options; the last letter is for none of them
NONE = "none of these"
QUESTION = "Which of these does the photo show?"
INSTRUCTION = "Answer with the letter."


def letters_of(n_options: int) -> tuple[str, ...]:
    """A letter for each of the options, and one for none of them."""
    return tuple(string.ascii_uppercase[: n_options + 1])


def letters_prompt(options: Sequence[str]) -> str:
    """The question, with a line for each option and one for none of them."""
    letters = letters_of(len(options))
    lines = [f"{letter}. {name}" for letter, name in zip(letters, [*options, NONE], strict=True)]
    return "\n".join([QUESTION, *lines, INSTRUCTION])


def order_of(image_id: str, number: int, options: Sequence[str]) -> list[int]:
    """The places of the K options in an order of this number: a permutation of 0 to K - 1.

    It is drawn by nothing but the arguments, so that a rerun asks the same question.
    """
    return sorted(range(len(options)), key=lambda i: digest(str(number), image_id, options[i]))


def letter_of(text: str, letters: Sequence[str]) -> str | None:
    """The letter that a token is, with or without a space before it; None where it is another."""
    bare = text.removeprefix(" ")
    return bare if bare in letters else None


def over_orders(
    rows: Sequence[Sequence[float]], orders: Sequence[Sequence[int]]
) -> list[float] | None:
    """Log-probabilities of K options and of none of them, over all orders in which they were shown.

    In each order those of the letters are normalised among themselves. Their mean, which takes out
    of an option what a letter or a place adds in one order alone, is normalised once more.

    Args:
        rows: for each order the log-probabilities of K + 1 letters.
        orders: for each the option at each of the K places.

    Returns:
        K + 1 numbers in the order of the options; None where every one is minus infinity.
    """
    n = len(orders[0])
    sums = [0.0] * (n + 1)
    for row, order in zip(rows, orders, strict=True):
        normalised = log_normalised(row)
        if normalised is None:
            return None
        for place, option in enumerate([*order, n]):
            sums[option] += normalised[place]
    return log_normalised([total / len(orders) for total in sums])
