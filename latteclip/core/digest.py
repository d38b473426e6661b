"""One digest of several parts: by it answers, downloads and trainings are found again."""

import hashlib
from collections.abc import Iterable


def digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts, each preceded by its length so that parts cannot run together."""
    return digest_of(parts)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """The same of parts that come one by one: millions of them need not be held at once."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()
