"""Shards of a table of captions: which rows each of them holds."""

import hashlib
from dataclasses import dataclass

from latteclip.core.errors import UserError


@dataclass(frozen=True)
class Shard:
    """A part of the rows: those whose id hashes to `number`, of `of` parts; counted from 1."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "2/4"."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UserError(f"Shard {text!r} is not of the form 2/4.")
        return cls(int(number), int(of))

    def holds(self, row_id: str) -> bool:
        """Whether a row belongs to this shard, whatever other rows there are."""
        return shard_of(row_id, self.of) == self.number


ALL_ROWS = Shard()


def shard_of(row_id: str, of: int) -> int:
    """The shard of a row, from 1 to `of`."""
    return 1 + int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8]) % of
