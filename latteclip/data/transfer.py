"""Transfer of one file from the web or Google Drive, which goes on where the last one broke off."""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latteclip.core.errors import UserError
from latteclip.core.progress import Progress

log = logging.getLogger(__name__)
RETRIES = 5  # of one transfer, each going on where the last one broke off
TIMEOUT = (15.0, 60.0)  # seconds to connect, and between two pieces
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may pass


class FetchError(Exception):
    """A source does not give the file; the next one is tried."""


def transfer(where: Mapping[str, str], target: Path) -> Path:
    """Fetch a file with gdown, which honours the proxy variables.

    Args:
        where: a url, or the id of a file on Google Drive.
        target: the file; what an earlier transfer left beside it is continued.

    Raises:
        FetchError: the server does not give it.
    """
    import requests
    from gdown.exceptions import DownloadError

    for attempt in range(RETRIES + 1):
        try:
            return _attempt(where, target)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status not in BUSY or attempt == RETRIES:
                raise FetchError(message_line(error)) from None
            log.info("%s: trying again.", message_line(error))
            time.sleep(2.0**attempt / 2)
        except (DownloadError, OSError) as error:  # requests' exceptions are OSErrors
            raise FetchError(message_line(error)) from None
    raise AssertionError


def _attempt(where: Mapping[str, str], target: Path) -> Path:
    """One transfer; a part of an earlier one that the server cannot continue is dropped."""
    import gdown
    from gdown.exceptions import DownloadError

    before = _parts(target)
    options: dict[str, Any] = {
        **where,
        "output": str(target),
        "quiet": True,
        "resume": True,
        "retries": RETRIES,
        "timeout": TIMEOUT,
        "use_cookies": False,
        "progress": _Meter(target.parent),
    }
    try:
        gdown.download(**options)
    except DownloadError:
        if not before or _parts(target) != before:
            raise
        for part in before:
            part.unlink()
        gdown.download(**options)
    return target


def _parts(target: Path) -> dict[Path, int]:
    """What earlier transfers left, with sizes in bytes."""
    return {part: part.stat().st_size for part in target.parent.glob(f"{target.name}*.part")}


class _Meter:
    """gdown's callback: bytes so far and in all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress: Progress | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self.progress is None:
            free = shutil.disk_usage(self.folder).free
            if total is not None and total - done > free:
                raise UserError(
                    f"The file has {total} bytes and {self.folder} has room for {free} only; free "
                    "some space and rerun."
                )
            self.progress = Progress(total, "B", done=done, scale=True)
        self.progress.add(done - self.progress.done)


def message_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
