"""The server of a page on which a person answers or changes something.

Any page that is open in a browser can send requests to 127.0.0.1, and a stranger's domain name
can point there. So each request must hold a secret token and name this server as its host. A
request that names its origin must come from this page. One that changes something must name it.
"""

import contextlib
import hmac
import json
import logging
import re
import secrets
import threading
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from latteclip.core.errors import UserError
from latteclip.report.gallery import webp

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
MAX_BODY = 1_000_000  # bytes of a request, which has one change or a few
TIMEOUT = 30  # seconds that a connection may wait for the rest of a request
SCRIPT = "served.js"  # what the scripts of served pages have in common
# Sources that the policy of a served page allows.
SERVED = (
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
QUALITY = 90  # of WebP
JSON = "application/json"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
}
Reply = tuple[HTTPStatus, str, bytes]  # with the type of the content


class Page(Protocol):
    """A page that is served, whose values are JSON."""

    picture_side: int  # pixels of the longer side of its pictures, at most

    def render(self) -> tuple[str, str]:
        """Return the page and its policy."""

    def picture(self, number: int) -> str | None:
        """Return the path of a picture, None: the page has no such picture."""

    def save(self, content: bytes) -> Any:
        """Save the changes in a request and return the new state. UserError: they are refused."""

    def result(self) -> Any:
        """Return what follows from all that is saved."""


class RefusedError(Exception):
    """A refused request, with its HTTPStatus."""


class PageServer(ThreadingHTTPServer):
    """Serves one page."""

    daemon_threads = True
    allow_reuse_address = False  # a port that another server has is in use

    def __init__(self, page: Page, port: int = 0) -> None:
        """Listen on a port of this machine, 0 for any free one, or raise UserError."""
        self.page = page
        self.token = secrets.token_urlsafe(24)
        self.busy = threading.Lock()
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"Port {port} cannot be used ({error}); leave out --port to use a free port."
            ) from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def show(self, *, browser: bool) -> None:
        """Serve the page until Ctrl-C, and open it in the browser if wanted."""
        with self, contextlib.suppress(KeyboardInterrupt):
            print(
                f"The page: {self.address}\nIt saves everything. Ctrl-C ends.",
                flush=True,
            )
            if browser:
                webbrowser.open(self.address)
            self.serve_forever()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close a connection early."""
        log.debug("A request ended early.", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PageServer
    timeout = TIMEOUT
    policy = "default-src 'none'"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the address holds the token."""

    def do_GET(self) -> None:
        """Reply to a request, whatever its method."""
        try:
            reply = self._reply(self._checked_path())
        except RefusedError as refusal:
            reply = _error(refusal.args[0])
        except UserError as error:
            log.warning("%s", error)
            reply = _error(HTTPStatus.BAD_REQUEST, str(error))
        # A browser closes a connection early.
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            message = f"This was not saved: {error.strerror}. Answer again when that is mended."
            log.warning(message)
            reply = _error(HTTPStatus.INTERNAL_SERVER_ERROR, message)
        self._send(*reply)

    do_PUT = do_GET  # noqa: N815

    def _checked_path(self) -> str:
        """Return the path after the token, if the request may be answered."""
        hosts = self.headers.get_all("Host", [])
        if hosts not in [
            [f"{name}:{self.server.server_port}"] for name in (HOST, "localhost")
        ]:
            raise RefusedError(HTTPStatus.FORBIDDEN)
        page = f"http://{hosts[0]}"
        if (
            self.headers.get("Origin", "" if self.command == "PUT" else page)
            != page
        ):
            raise RefusedError(HTTPStatus.FORBIDDEN)
        start = f"/{self.server.token}/"
        if not hmac.compare_digest(
            self.path[: len(start)].encode(), start.encode()
        ):
            raise RefusedError(HTTPStatus.NOT_FOUND)
        return self.path[len(start) :]

    def _reply(self, path: str) -> Reply:
        page = self.server.page
        wanted = f"{self.command} {path}"
        if number := re.fullmatch("GET image/([0-9]{1,9})", wanted):
            file = page.picture(int(number[1]))  # no path comes from outside
            if file is None:
                raise RefusedError(HTTPStatus.NOT_FOUND)
            content = webp(file, page.picture_side, QUALITY)
            return HTTPStatus.OK, "image/webp", content
        body = self._body() if self.command == "PUT" else b""
        with self.server.busy:
            if wanted == "PUT changes":
                return HTTPStatus.OK, JSON, _as_json(page.save(body))
            if wanted == "GET result":
                return HTTPStatus.OK, JSON, _as_json(page.result())
            if wanted != "GET ":
                raise RefusedError(HTTPStatus.NOT_FOUND)
            html, self.policy = page.render()
        return HTTPStatus.OK, "text/html; charset=utf-8", html.encode()

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if (
            not re.fullmatch("[0-9]{1,9}", length)
            or "Transfer-Encoding" in self.headers
        ):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED)
        if int(length) > MAX_BODY:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if self.headers.get_content_type() != JSON:
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        return self.rfile.read(int(length))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        headers = HEADERS | {
            "Content-Security-Policy": f"{self.policy}; frame-ancestors 'none'",
            "Content-Type": kind,
            "Content-Length": str(len(body)),
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _as_json(values: Any) -> bytes:
    return json.dumps(values).encode()


def _error(status: HTTPStatus, message: str = "") -> Reply:
    return status, JSON, _as_json({"error": message or status.phrase})
