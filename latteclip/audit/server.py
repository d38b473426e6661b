"""The server of the page that asks a person about images.

Any page that is open in a browser can send requests to 127.0.0.1, and a stranger's domain name
can point there. So each request must hold a secret token and name this server as its host. A
request that names its origin must come from this page. One that changes something must name it.
"""

import contextlib
import hmac
import io
import json
import logging
import re
import secrets
import threading
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from latteclip.audit.page import render_page, write_offline
from latteclip.audit.score import TooFewAnswersError
from latteclip.audit.session import (
    LAST,
    QuestionSession,
    import_answers,
    print_result,
)
from latteclip.core.errors import UserError
from latteclip.data.images import open_rgb
from latteclip.labels.answers import entries

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
MAX_BODY = 1_000_000  # bytes of a request, which has one answer or a few
TIMEOUT = 30  # seconds that a connection may wait for the rest of a request
SERVED_SIDE = 1024  # pixels of a picture
SERVED = "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
JSON = "application/json"
HTML = "text/html; charset=utf-8"
WEBP = "image/webp"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
}
Reply = tuple[HTTPStatus, str, bytes]  # with the type of the content


def run_session(
    make_session: Callable[[], QuestionSession],
    *,
    offline: str | None,
    answers: str | None,
    score: bool,
    port: int,
    browser: bool,
) -> None:
    """Do what the options of `audit` and `teach` say. Without them, ask the questions on a page.

    After the answers, the result is printed if they are enough for one.
    """
    session = make_session()
    if offline:
        write_offline(session, offline)
        return
    if answers:
        import_answers(session, answers)
    if score:
        print_result(session)
        return
    if not answers:
        show(QuestionServer(session, port), "Every answer is saved.", browser=browser)
    with contextlib.suppress(TooFewAnswersError):
        print_result(session)


def show(server: "QuestionServer", note: str, *, browser: bool) -> None:
    """Serve a page until Ctrl-C, and open it in the browser if wanted."""
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"The page: {server.address}\n{note} Ctrl-C ends.", flush=True)
        if browser:
            webbrowser.open(server.address)
        server.serve_forever()


class RefusedError(Exception):
    """A refused request, with its HTTPStatus."""


class QuestionServer(ThreadingHTTPServer):
    """Serves the questions of one session and saves the answers."""

    daemon_threads = True
    allow_reuse_address = False  # a port that another server has is in use

    def __init__(
        self, session: Any, port: int = 0, handler: "type[Handler] | None" = None
    ) -> None:
        """Listen on a port of this machine, 0 for any free one, or raise UserError."""
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.busy = threading.Lock()
        try:
            super().__init__((HOST, port), handler or Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"Port {port} cannot be used ({error}); leave out --port to use a free port."
            ) from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close a connection early."""
        log.debug("A request ended early.", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: QuestionServer
    timeout = TIMEOUT
    policy = "default-src 'none'"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the address holds the token."""

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Refuse a request without repeating it."""
        self._send(*_error(HTTPStatus(code)))

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
            message = (
                f"This was not saved: {error.strerror}. Answer again when that is mended."
            )
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
        if self.headers.get("Origin", "" if self.command == "PUT" else page) != page:
            raise RefusedError(HTTPStatus.FORBIDDEN)
        start = f"/{self.server.token}/"
        if not hmac.compare_digest(self.path[: len(start)].encode(), start.encode()):
            raise RefusedError(HTTPStatus.NOT_FOUND)
        return self.path[len(start) :]

    def _reply(self, path: str) -> Reply:
        session = self.server.session
        image_of = {
            f"image/{question.number}": question.path for question in session.questions
        }
        if self.command == "PUT" and path == "answers":
            return self._save(session)
        if self.command == "GET" and path in image_of:  # no path comes from outside
            return served_picture(image_of[path], SERVED_SIDE, quality=90)
        if self.command == "PUT" or path not in ("", "result"):
            raise RefusedError(HTTPStatus.NOT_FOUND)
        with self.server.busy:
            saved = session.saved()
            if path == "result":
                return HTTPStatus.OK, JSON, as_json(session.result(saved.answers))
            last = list(saved.answers.values())[-LAST:]
            values = {"state": session.state(saved.answers), "last": entries(last)}
        html, self.policy = render_page(session, SERVED, values)
        return HTTPStatus.OK, HTML, html.encode()

    def _save(self, session: QuestionSession) -> Reply:
        """Save what the page has changed: new answers, and keys of those that it took back."""
        body = self._body()
        changed = session.schema.parse(body, "The request").answers
        removed = json.loads(body).get("removed", [])
        if not isinstance(removed, list) or not all(isinstance(k, str) for k in removed):
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        with self.server.busy:
            answers = session.schema.update(session.path, changed, removed)
            return HTTPStatus.OK, JSON, as_json(session.state(answers))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or "Transfer-Encoding" in self.headers:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED)
        if int(length) > MAX_BODY:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if self.headers.get_content_type() != JSON:
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        return self.rfile.read(int(length))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        policy = f"{self.policy}; frame-ancestors 'none'"
        of_body = {"Content-Type": kind, "Content-Length": len(body)}
        self.send_response(status)
        for name, value in {
            **HEADERS,
            "Content-Security-Policy": policy,
            **of_body,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


def as_json(values: Any) -> bytes:
    """Return the body of a reply of JSON."""
    return json.dumps(values).encode()


def served_picture(path: str, side: int, quality: int) -> Reply:
    """Return the reply with an image file, scaled to a longer side of at most `side` pixels."""
    file = io.BytesIO()
    open_rgb(path, max_side=side).save(file, "WEBP", quality=quality)
    return HTTPStatus.OK, WEBP, file.getvalue()


def _error(status: HTTPStatus, message: str = "") -> Reply:
    return status, JSON, as_json({"error": message or status.phrase})
