"""Amounts of money, tokens or seconds, as the keys `max_cost` give them."""

import math

MILLION = 1e6
MONEY, TOKENS, SECONDS = "money", "tokens", "seconds"


def amount_of(max_cost: float | str) -> tuple[float, str]:
    """Return the number of a key `max_cost`, and its unit: MONEY, TOKENS or SECONDS."""
    if isinstance(max_cost, str):
        number, unit = max_cost.split()
        return float(number), unit
    return max_cost, MONEY


def as_max_cost(number: float, unit: str) -> float | str:
    """Return an amount as a key `max_cost` has it, of tokens and seconds at least 1."""
    return number if unit == MONEY else f"{max(1, math.floor(number))} {unit}"


def amount(value: float, unit: str) -> str:
    """Return a number of MONEY, TOKENS or SECONDS in words."""
    return f"{value:.4g}" if unit == MONEY else f"{value:,.0f} {unit}"


def price(read: float, written: float, price_input: float, price_output: float) -> float:
    """Return the money that tokens cost, by the prices of a million that are read or written."""
    return (price_input * read + price_output * written) / MILLION
