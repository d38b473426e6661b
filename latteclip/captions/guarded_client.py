"""An HTTP client that a server can neither flood nor keep for ever.

A reply is read up to a size and a time; one to a question must be an answer. What breaks these
rules is for the caller a broken connection, so it asks again as often as it would then.
"""

import time
from collections.abc import Iterator
from functools import partial

import httpx2
import openai

from latteclip.captions.replies import BadReplyError, read_reply

LONGEST = 4 * 2**20  # bytes of a reply


class _Bounded(httpx2.SyncByteStream):
    """A reply's bytes, up to LONGEST of them and up to a moment."""

    def __init__(self, stream: httpx2.SyncByteStream, seconds: float) -> None:
        self._stream, self._seconds = stream, seconds
        self._until = time.monotonic() + seconds

    def __iter__(self) -> Iterator[bytes]:
        left = LONGEST
        for chunk in self._stream:
            left -= len(chunk)
            if left < 0:
                raise httpx2.RemoteProtocolError(
                    f"the server's answer is larger than {LONGEST} bytes"
                )
            if time.monotonic() > self._until:
                raise httpx2.ReadTimeout(
                    f"the server's answer timed out: it is not there after {self._seconds:g} s"
                )
            yield chunk

    def close(self) -> None:
        self._stream.close()


def client(seconds: float) -> httpx2.Client:
    """A client for one server: it follows no redirect, for pictures go to that server alone.

    Args:
        seconds: for a reply, from its first byte to its last.
    """
    return openai.DefaultHttpxClient(
        follow_redirects=False, event_hooks={"response": [partial(_check, seconds=seconds)]}
    )


def _check(response: httpx2.Response, seconds: float) -> None:
    """Bound a reply, and refuse one that is no answer to a question."""
    # Packed, a small reply could become any size: it is taken as it comes, and is no JSON then.
    response.headers.pop("Content-Encoding", None)
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _Bounded(response.stream, seconds)
    if response.request.method != "POST" or not response.is_success:
        return
    try:
        read_reply(response.read())
    except BadReplyError as fault:
        raise httpx2.RemoteProtocolError(f"the server's answer cannot be used: {fault}") from None
