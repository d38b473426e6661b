"""The server of an audit: on this machine alone, for whoever knows its address.

Any page that is open in a browser can send requests to 127.0.0.1, and a name that somebody else
owns can point there. So each request must hold the token and name this server as its host; one that
says where it comes from must come from this page, and one that changes something must say so.
"""

import hmac
import io
import json
import logging
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from latteclip.audit.advice import steps
from latteclip.audit.answers import UNDONE
from latteclip.audit.page import page
from latteclip.audit.score import as_texts
from latteclip.audit.session import Session, shown
from latteclip.core.errors import UserError, full_disk

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
MAX_BODY = 10_000  # bytes: an answer has a few hundred
SECONDS = 30  # that a connection may wait for the rest of a request
SIDE = 1024  # of a picture
SOURCES = "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
NO_SPACE = (
    "The disk is full, so this was not saved. Free some space and do it again; all earlier answers "
    "are saved."
)
JSON, HTML, WEBP = "application/json", "text/html; charset=utf-8", "image/webp"


class RefusedError(Exception):
    """A request that gets no answer, with its status and one sentence."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class AuditServer(ThreadingHTTPServer):
    """Serves the questions of one audit; of its answers there is one at a time."""

    daemon_threads = True
    allow_reuse_address = False  # a port that another server has is in use

    def __init__(self, session: Session, port: int = 0) -> None:
        """Listen on a port of this machine; 0: any that is free.

        Raises:
            UserError: the port is in use, or not for us.
        """
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.busy = threading.Lock()
        self.html, self.policy = page(session, SOURCES, {"offline": False})
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"Port {port} cannot be used ({getattr(error, 'strerror', None) or error}); leave "
                "--port out, and any free one is taken."
            ) from None

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error."""
        log.debug("A request ended early.", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: AuditServer
    timeout = SECONDS
    server_version, sys_version = "latteclip", ""

    def do_GET(self) -> None:
        """The page, its pictures, and how far the audit is."""
        self._handle(self._get)

    def do_POST(self) -> None:
        """An answer, or taking one back."""
        self._handle(self._post)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: the address holds the token."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library itself refuses: as all the rest, without repeating the request."""
        self.close_connection = True
        self._send(code, JSON, _json({"error": HTTPStatus(code).phrase}))

    def _handle(self, act: Callable[[str], tuple[str, bytes]]) -> None:
        try:
            kind, body = act(self._checked())
        except RefusedError as refusal:
            self.close_connection = True  # perhaps with a body that nobody has read
            self._send(refusal.status, JSON, _json({"error": str(refusal)}))
        except UserError as error:
            self._send(HTTPStatus.BAD_REQUEST, JSON, _json({"error": str(error)}))
        except OSError as error:
            if full_disk(error) is None:
                raise
            log.warning(NO_SPACE)
            self._send(HTTPStatus.INSUFFICIENT_STORAGE, JSON, _json({"error": NO_SPACE}))
        else:
            self._send(HTTPStatus.OK, kind, body)

    def _checked(self) -> str:
        """What is asked for, as the address says it after the token."""
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        host = self.headers.get("Host", "")
        if len(self.headers.get_all("Host", [])) != 1 or host not in hosts:
            raise RefusedError(HTTPStatus.FORBIDDEN, "This server goes by another name.")
        origin = self.headers.get("Origin")
        if (origin is None and self.command == "POST") or origin not in (None, f"http://{host}"):
            raise RefusedError(HTTPStatus.FORBIDDEN, "Another page may not ask this.")
        start, token, *rest = self.path.split("/", 2)
        if start or not rest or not hmac.compare_digest(token.encode(), self._token()):
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
        return rest[0]

    def _token(self) -> bytes:
        return self.server.token.encode()

    def _get(self, what: str) -> tuple[str, bytes]:
        if what == "":
            return HTML, self.server.html.encode()
        if what.startswith("image/"):
            return WEBP, self._picture(what.removeprefix("image/"))
        with self.server.busy:
            if what == "state":
                return JSON, _json(state(self.server.session))
            if what == "result":
                return JSON, _json(result(self.server.session))
        raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def _picture(self, number: str) -> bytes:
        """A picture by its number: no path comes from outside."""
        session = self.server.session
        if not (number.isascii() and number.isdecimal() and len(number) < 9):
            raise RefusedError(HTTPStatus.NOT_FOUND, "Pictures have numbers.")
        if int(number) >= session.total:
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is no picture of this number.")
        file = io.BytesIO()
        shown(session.question(int(number)), SIDE).save(file, "WEBP", quality=90)
        return file.getvalue()

    def _post(self, what: str) -> tuple[str, bytes]:
        values = self._body()
        session = self.server.session
        with self.server.busy:
            if what == "answer":
                number, kind, name = (values.get(key) for key in ("number", "answer", "class"))
                if type(number) is not int or not isinstance(kind, str) or kind == UNDONE:
                    raise RefusedError(HTTPStatus.BAD_REQUEST, "An answer has a number and a kind.")
                session.answer(number, kind, name)
            elif what == "undo":
                session.answers.undo()
            else:
                raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
            return JSON, _json(state(session))

    def _body(self) -> dict[str, Any]:
        """The JSON object that was sent; of anything larger or other than that nothing is read."""
        if self.headers.get("Transfer-Encoding") is not None:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Say how long the body is.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Say how long the body is.")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "That is too much for an answer."
            )
        if self.headers.get("Content-Type", "").split(";")[0].strip().lower() != JSON:
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Answers are JSON.")
        try:
            values = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The body is not valid JSON.") from None
        if not isinstance(values, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The body is not a JSON object.")
        return values

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{self.server.policy}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
            "Connection": "close",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def state(session: Session) -> dict[str, Any]:
    """How far the audit is, and the question that is next."""
    number = session.current()
    return {
        "number": number,
        "answered": session.answered(),
        "total": session.total,
        "options": [] if number is None else session.question(number).options,
    }


def result(session: Session) -> dict[str, Any]:
    """Return what the answers say and what to do next, as texts for the page."""
    audit = session.score()
    accuracies, comparisons = as_texts(audit)
    return {
        "sentence": audit.sentence,
        "accuracies": accuracies,
        "comparisons": comparisons,
        "steps": [[step.text, step.command] for step in steps(session.folder, audit)],
    }


def _json(values: Any) -> bytes:
    return json.dumps(values).encode()
