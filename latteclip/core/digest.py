"""One digest of several parts: by it answers, downloads and trainings are found again."""

import hashlib


def digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts, each preceded by its length so that parts cannot run together."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()
