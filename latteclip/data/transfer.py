"""Transfer of one file from the web, which goes on where the last one broke off."""

import contextlib
import json
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urljoin, urlsplit

from latteclip import __version__
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.terminal import Progress

if TYPE_CHECKING:
    from requests import Response

log = logging.getLogger(__name__)
T = TypeVar("T")
RETRIES = 5  # of one transfer, each going on where the last one broke off
TIMEOUT = (15.0, 60.0)  # seconds to connect, and between two pieces
ANSWER = 300.0  # seconds until the first byte of the file
WINDOW, LEAST = 60.0, 1000  # seconds, and bytes per second that have to come meanwhile
CHECKED = 1.0  # seconds between two looks at what another thread fetches
PIECE = 2**20  # bytes read at once, at most
REDIRECTS = 20
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may pass
WHOLE, PARTIAL, BEYOND = 200, 206, 416  # answers: the file, the rest of it, no such rest
# How a file may be compressed on the way: only where its own name says so, and kept as it comes.
ENCODINGS = {"gzip": (".gz", ".tgz"), "x-gzip": (".gz", ".tgz"), "bzip2": (".bz2",)}
LONGEST = 500  # characters of a foreign message that are shown


class FetchError(Exception):
    """A source does not give the file; the next one is tried."""


class PassingError(FetchError):
    """What may go better at the next attempt."""


def transfer(url: str, target: Path) -> Path:
    """Fetch a file over http or https; the proxy variables of the environment apply.

    Args:
        url: of the file.
        target: where it goes; what an earlier transfer left beside it is continued, if the server
            says that its file is still the same.

    Raises:
        FetchError: the server does not give it.
        UserError: it has no room here.
    """
    for attempt in range(RETRIES + 1):
        try:
            return _attempt(url, target)
        except PassingError as error:
            if attempt == RETRIES:
                raise
            log.info("%s: trying again.", error)
            time.sleep(2.0**attempt / 2)
    raise AssertionError


def _attempt(url: str, target: Path) -> Path:
    """One transfer; a part of an earlier one that the server cannot continue is dropped."""
    part = _Part(target)
    with _told(), _answer(url, part.request()) as response:
        if part.size and not part.is_continued_by(response):
            log.info("%s cannot be continued; it is fetched anew.", url)
            part.drop()
            return _attempt(url, target)
        _check(response, url, part)
        if response.status_code != PARTIAL:
            part.begin(response)
        _receive(response, part, target.parent)
    os.replace(part.path, target)
    part.note.unlink(missing_ok=True)
    return target


class _Part:
    """What attempts left of a file so far, with the version of the file that it belongs to."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        self.version: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.version = dict(json.loads(self.note.read_text(encoding="utf-8")))
        self.size = self.path.stat().st_size if self.path.is_file() and self.version else 0

    def request(self) -> dict[str, str]:
        """The headers that ask for the rest, or for all."""
        headers = {"Accept-Encoding": "identity", "User-Agent": f"latteclip/{__version__}"}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
            etag = self.version.get("ETag", "")
            # A weak one says too little to a server; the answer is compared in any case.
            if same := self.version.get("Last-Modified") if etag.startswith("W/") else etag:
                headers["If-Range"] = same
        return headers

    def is_continued_by(self, response: "Response") -> bool:
        """Whether an answer begins where this ends, or has the whole file, or none of it."""
        if response.status_code != PARTIAL:
            return response.status_code != BEYOND
        begins = response.headers.get("Content-Range", "").startswith(f"bytes {self.size}-")
        return begins and _version(response) == self.version

    def begin(self, response: "Response") -> None:
        """Start anew with the file of an answer."""
        self.drop()
        self.path.touch()
        self.version = _version(response)
        write_json(self.note, self.version)

    def drop(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)
        self.size = 0


def _version(response: "Response") -> dict[str, str]:
    """What tells the server's file from another one of its name; empty: nothing does."""
    kept = ("ETag", "Last-Modified")
    return {name: response.headers[name] for name in kept if response.headers.get(name)}


def _answer(url: str, headers: Mapping[str, str]) -> "Response":
    """The answer at the end of all redirections, of which no more than the head is read."""
    import requests

    def ask() -> "Response":
        place = url
        for _ in range(REDIRECTS):
            response = requests.get(
                place, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False
            )
            if not response.is_redirect:
                return response
            response.close()
            place = urljoin(place, response.headers["Location"])
        raise FetchError(f"more than {REDIRECTS} redirections")

    started = time.monotonic()

    def check() -> None:
        if time.monotonic() - started > ANSWER:
            raise FetchError(f"no answer came within {ANSWER:.0f} s")

    return apart(ask, check)


def _check(response: "Response", url: str, part: _Part) -> None:
    """FetchError for anything but the file as it is."""
    response.raise_for_status()
    if response.status_code not in ((WHOLE, PARTIAL) if part.size else (WHOLE,)):
        raise FetchError(f"it answers with status {response.status_code} and no file")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity" and not urlsplit(url).path.lower().endswith(
        ENCODINGS.get(encoding, ())
    ):
        raise FetchError(f"it comes compressed ({encoding!r}), though it was asked for as it is")


def _receive(response: "Response", part: _Part, folder: Path) -> None:
    """Append the content of an answer to the part, and check that nothing of it is missing."""
    length = response.headers.get("Content-Length", "")
    total = part.size + int(length) if length.isdecimal() else None
    progress, pace = expected(folder, part.size, total), Pace(WINDOW)
    with part.path.open("ab") as file:
        # Not by fixed sizes: those would be waited for without an end, if they come in drops.
        while piece := response.raw.read1(PIECE, decode_content=False):
            file.write(piece)
            progress.add(len(piece))
            pace.add(len(piece))
            pace.check()
    if total is not None and progress.done != total:
        raise PassingError(f"the transfer is incomplete: {progress.done} of {total} bytes")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what goes wrong in a transfer into a FetchError of one line."""
    import requests
    import urllib3

    try:
        yield
    except requests.HTTPError as error:
        passing = error.response is not None and error.response.status_code in BUSY
        raise (PassingError if passing else FetchError)(message_line(error)) from None
    except urllib3.exceptions.ProtocolError as error:
        raise PassingError(f"the transfer is incomplete ({error.args[0]})") from None
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise PassingError(message_line(error)) from None
    except (OSError, ValueError) as error:  # of the system; a redirection to no URL
        raise FetchError(message_line(error)) from None


class Pace:
    """Whether bytes come fast enough, in one window of time after the other."""

    def __init__(self, window: float) -> None:
        """Start the clock; window: seconds."""
        self.window, self.since, self.came = window, time.monotonic(), 0

    def add(self, n: int) -> None:
        """Count `n` more bytes."""
        self.came += n

    def check(self) -> None:
        """FetchError where a whole window brought too few."""
        seconds = time.monotonic() - self.since
        if seconds < self.window:
            return
        if self.came < LEAST * seconds:
            raise FetchError(
                f"{self.came} bytes came in {seconds:.0f} s, and {LEAST} per second are the least; "
                "what came is kept"
            )
        self.since, self.came = time.monotonic(), 0


def expected(folder: Path, done: int, total: int | None) -> Progress:
    """The progress of a file of `total` bytes, of which `done` are there.

    Raises:
        UserError: `folder` has no room for the others.
    """
    free = shutil.disk_usage(folder).free
    if total is not None and total - done > free:
        raise UserError(
            f"The file has {total} bytes and {folder} has room for {free} only; free "
            "some space and rerun."
        )
    return Progress(total, "B", done=done, scale=True)


def apart(act: Callable[[], T], check: Callable[[], None]) -> T:
    """What `act` gives, in a thread that is left to itself as soon as `check` raises."""
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((act(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            result, error = results.get(timeout=CHECKED)
        except queue.Empty:
            check()
            continue
        if error is not None:
            raise error
        return cast(T, result)


def message_line(error: Exception) -> str:
    """What an error says, in one line of characters that can be printed."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "".join(c if c.isprintable() else "?" for c in line[:LONGEST])
