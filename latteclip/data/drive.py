"""Transfer of one file from Google Drive, which goes on where the last one broke off."""

from pathlib import Path
from typing import Any

from latteclip.core.terminal import Progress
from latteclip.data import transfer
from latteclip.data.transfer import FetchError, Pace, apart, expected, message_line

WINDOW = 600.0  # seconds: gdown tells of half a megabyte at a time


def fetch(file_id: str, target: Path) -> Path:
    """Fetch a file with gdown, which honours the proxy variables.

    Args:
        file_id: of the file.
        target: where it goes; what an earlier transfer left beside it is continued.

    Raises:
        FetchError: Google does not give it.
    """
    from gdown.exceptions import DownloadError

    pace = Pace(WINDOW)
    try:
        return apart(lambda: _attempt(file_id, target, pace), pace.check)
    except (DownloadError, OSError) as error:  # requests' are OSErrors
        raise FetchError(message_line(error)) from None


def _attempt(file_id: str, target: Path, pace: Pace) -> Path:
    """One transfer; a part of an earlier one that cannot be continued is dropped."""
    import gdown
    from gdown.exceptions import DownloadError

    before = _parts(target)
    options: dict[str, Any] = {
        "id": file_id,
        "output": str(target),
        "quiet": True,
        "resume": True,
        "retries": transfer.RETRIES,
        "timeout": transfer.TIMEOUT,
        "use_cookies": False,
        "progress": _Meter(target.parent, pace),
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

    def __init__(self, folder: Path, pace: Pace) -> None:
        self.folder, self.pace = folder, pace
        self.progress: Progress | None = None

    def __call__(self, done: int, total: int | None) -> None:
        if self.progress is None:
            self.progress = expected(self.folder, done, total)
        new = done - self.progress.done
        self.progress.add(new)
        self.pace.add(new)
