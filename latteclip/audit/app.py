"""The page that asks a person about images, with its server, and `latteclip audit`.

The page holds the answers. The server saves them after each key press, and the page that works
offline exports them as the same JSON.

Any page that is open in a browser can send requests to 127.0.0.1, and a stranger's domain name can
point there. So each request must hold a secret token and name this server as its host. A request
that names its origin must come from this page, and a request that changes something must name it.
"""

import contextlib
import hmac
import io
import json
import logging
import re
import secrets
import shlex
import threading
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from latteclip.audit.sampling import (
    Population,
    audit_files,
    read_or_draw,
    read_population,
    runs_in,
)
from latteclip.audit.score import (
    MAX_IMAGES,
    TooFewAnswersError,
    as_text,
    next_steps,
    read_predictions,
    score,
    table_rows,
)
from latteclip.core.errors import UserError, full_disk
from latteclip.core.files import write_text
from latteclip.core.hashing import digest
from latteclip.data.images import open_rgb
from latteclip.evaluate.results import Audit
from latteclip.labels.answers import (
    UNSURE,
    Answer,
    AnswerSchema,
    StaleRevisionError,
    read_answers,
    read_exported,
    write_answers,
)
from latteclip.report import render
from latteclip.report.images import picture

log = logging.getLogger(__name__)
ALL_OFFERED = 9  # classes: as many as there are keys for; of more classes, some are offered
OFFERED = 6  # of many classes, or more where runs predict more
UPCOMING = 3  # questions that the page knows beforehand

HOST = "127.0.0.1"
MAX_BODY = 5_000_000  # bytes of all answers; an answer has a few hundred
TIMEOUT = 30  # seconds that a connection may wait for the rest of a request
SERVED_SIDE, OFFLINE_SIDE = 1024, 640  # pixels of a picture
SERVED = "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
OFFLINE = "img-src data:"
# Bytes before base64: of all pictures of the offline page, and of each at most and at least.
TOTAL_BYTES, MAX_PICTURE, MIN_PICTURE = 18_000_000, 90_000, 4_000
DISK_FULL = "The disk is full, so this was not saved. Free some space and answer again."
JSON, HTML, WEBP = "application/json", "text/html; charset=utf-8", "image/webp"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
}
PACKAGE = "latteclip.audit"


@dataclass(frozen=True)
class Question:
    """An image and the classes that it may be of, in the order of the classes."""

    number: int
    image_id: str
    path: str
    options: list[str]
    phase: str | None = None  # TEACH or CHECK, of answers that teach
    repeat: bool = False  # whether the image is asked about a second time

    @property
    def key(self) -> str:
        return Answer(self.image_id, UNSURE, repeat=self.repeat).key

    def as_json(self, picture: str) -> dict[str, Any]:
        values = {"image": self.image_id, "options": self.options, "picture": picture}
        optional = {"phase": self.phase, "repeat": self.repeat}
        return {**values, **{key: value for key, value in optional.items() if value}}


class Interview:
    """A series of questions whose answers are in one file."""

    title: str  # of the page
    images: str  # the kind of images, for the page
    command: str  # that goes on, or imports answers
    path: Path  # of the answers
    schema: AnswerSchema
    total: int  # how many questions there are
    questions: list[Question]  # as far as they are known

    def open_questions(self, answers: Mapping[str, Answer]) -> list[Question]:
        """Return questions without an answer, none if all are answered."""
        return [one for one in self.questions if one.key not in answers]

    def all_open(self, answers: Mapping[str, Answer]) -> list[Question]:
        """Return all questions without an answer."""
        return self.open_questions(answers)

    def admitted(self, answers: Mapping[str, Answer]) -> dict[str, Answer]:
        """Return answers as they are saved, or raise UserError."""
        return dict(answers)

    def read_file(self, path: str) -> dict[str, Answer]:
        """Return the answers of a file, or raise UserError."""
        return read_exported(path, self.schema)

    def answered(self, answers: Mapping[str, Answer]) -> int:
        """Return how many of the questions have an answer."""
        return self.total - len(self.open_questions(answers))

    def status(self, _: Mapping[str, Answer]) -> str:
        """Return a sentence for the page."""
        return ""

    def result(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """Return the result so far, as texts for the page."""
        raise NotImplementedError


class AuditSession(Interview):
    """An audit of a dataset's results: a plan, its first questions, and the answers to them."""

    def __init__(self, folder: str | Path, split: str | None, budget: int) -> None:
        """Go on with the audit of a dataset's results, or begin it.

        Args:
            folder: of the results.
            split: test or train; None: see `read_population`.
            budget: how many images are asked about at most.
        """
        if not 1 <= budget <= MAX_IMAGES:
            raise UserError(f"--budget {budget} is not between 1 and {MAX_IMAGES:,} images.")
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder} is not a folder; name the results of a dataset.")
        self.population = read_population(folder, split)
        self.dataset, split = self.population.dataset, self.population.split
        self.title, self.images = "Audit", f"{split} images"
        self.command = f"latteclip audit {shlex.quote(str(folder))}"
        plan_file, self.path = audit_files(self.folder, split)
        self.plan = read_or_draw(plan_file, self.population)
        self.schema = self.plan.schema(self.dataset)
        ids, paths = self.population.image_ids, self.population.paths
        self.questions = [
            Question(number, ids[row], paths[row], offered_classes(self.population, row))
            for number, row in enumerate(self.plan.order[:budget].tolist())
        ]
        self.total = len(self.questions)
        if self.total < budget:
            log.warning(
                "The %s split has %d images that can be asked about, fewer than the budget of %d.",
                *(split, self.total, budget),
            )

    def answers(self) -> dict[str, Answer]:
        return read_answers(self.path, self.schema)[0]

    def result(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        audit = self.score(answers)
        accuracies, differences = table_rows(audit)
        return {
            "sentence": audit.sentence,
            "tables": [
                [["model", "right, %", "95 % interval"], accuracies],
                [["difference", "points", "95 % interval", ""], differences],
            ],
            "steps": next_steps(self.folder, audit),
        }

    def score(self, answers: Mapping[str, Answer]) -> Audit:
        """Score every run in the folder by answers; UserError where there are too few."""
        runs = [one for one in runs_in(self.folder) if one.predictions]
        predictions = read_predictions(self.dataset, self.plan, runs)
        return score(self.dataset, self.plan, predictions, answers)


def offered_classes(population: Population, row: int) -> list[str]:
    """Return the classes that are offered for an image, in the order of all classes.

    Few classes are all offered. Of many, those are offered that a run predicts, CLIP's next best,
    and others at random up to OFFERED. Their order does not tell who predicts which.
    """
    c = len(population.classnames)
    if c <= ALL_OFFERED:
        return list(population.classnames)
    rng = np.random.default_rng(int(digest(population.image_ids[row])[:16], 16))
    predicted = dict.fromkeys(population.predictions[row].tolist())
    others = [*population.ranked[row].tolist(), *rng.permutation(c).tolist()]
    offered = list(predicted | dict.fromkeys(others))[: max(OFFERED, len(predicted))]
    return [population.classnames[label] for label in sorted(offered)]


# --- the command ---------------------------------------------------------------------------------


def print_estimate(session: AuditSession) -> None:
    """Print the accuracies by the saved answers, and what to do next."""
    audit = session.score(session.answers())
    print(as_text(audit))
    for text, command in next_steps(session.folder, audit):
        print(f"\n{text}", *([f"\n  {command}"] if command else []), sep="")


def import_answers(interview: Interview, path: str) -> None:
    """Add the answers of an exported file; an image that has an answer keeps it."""
    exported = interview.admitted(interview.read_file(path))
    answers, revision = read_answers(interview.path, interview.schema)
    try:
        write_answers(interview.path, interview.schema, {**exported, **answers}, revision)
    except StaleRevisionError:
        raise UserError(f"{interview.path} changed meanwhile; run the command again.") from None
    log.info("Took %d answers from %s.", len(exported.keys() - answers.keys()), path)
    if repeated := len(exported.keys() & answers.keys()):
        log.warning("%d images have an answer already, which stands.", repeated)


def serve(interview: Interview, port: int, *, browser: bool) -> None:
    """Ask the questions on a page of this machine until Ctrl-C, or raise UserError."""
    with InterviewServer(interview, port) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"The page: {server.address}", flush=True)
        print("Every answer is saved at once; Ctrl-C ends, the same command goes on.", flush=True)
        if browser and not webbrowser.open(server.address):
            log.warning("No browser could be opened: open the address yourself.")
        server.serve_forever()


def serve_audit(session: AuditSession, port: int, *, browser: bool) -> None:
    """Serve the audit's page, then print the estimate if there are enough answers."""
    serve(session, port, browser=browser)
    with contextlib.suppress(TooFewAnswersError):
        print_estimate(session)


# --- the page ------------------------------------------------------------------------------------


def render_page(interview: Interview, sources: str, values: Mapping[str, Any]) -> tuple[str, str]:
    """Return the page with values for its script, and the policy that allows these `sources`."""
    folder = files(PACKAGE) / "templates"
    script = (folder / "audit.js").read_text(encoding="utf-8")
    style = render.style() + (folder / "audit.css").read_text(encoding="utf-8")
    policy = render.policy(script, sources)
    page = render.environment(PACKAGE).get_template("audit.html")
    text = page.render(
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        interview=interview,
        classnames=sorted(interview.schema.classnames),
        all_offered=len(interview.schema.classnames) <= ALL_OFFERED,
        values={**interview.schema.header(), **values},
    )
    return text, policy


def page_state(
    interview: Interview, answers: Mapping[str, Answer], revision: str
) -> dict[str, Any]:
    """Return what the page must know when it opens and after each answer."""
    upcoming = interview.open_questions(answers)  # labels may learn, and the status follows
    return {
        **interview.schema.document(answers),
        "revision": revision,
        "answered": interview.answered(answers),
        "total": interview.total,
        "status": interview.status(answers),
        "upcoming": [one.as_json(f"image/{one.number}") for one in upcoming[:UPCOMING]],
    }


def write_offline(interview: Interview, output: str) -> None:
    """Write a page that needs no server, with all open questions, or raise UserError."""
    answers, _ = read_answers(interview.path, interview.schema)
    questions = interview.all_open(answers)
    if not questions:
        raise UserError(
            f"All {interview.total} images are answered already; a larger --budget asks more."
        )
    max_bytes = min(MAX_PICTURE, TOTAL_BYTES // len(questions))
    if max_bytes < MIN_PICTURE:
        raise UserError(
            f"A page with {len(questions):,} pictures would be too large; ask for at most "
            f"--budget {TOTAL_BYTES // MIN_PICTURE}."
        )
    values = {
        "offline": True,
        "take": f"{interview.command} --answers answers.json",
        "answered": interview.total - len(questions),
        "questions": [question.as_json(_data_uri(question, max_bytes)) for question in questions],
    }
    text, _ = render_page(interview, OFFLINE, values)
    write_text(output, text)
    log.info(
        "Wrote %s: %d images, %d are answered already, %.1f MB. Open it in any browser, export the "
        "answers there, and run %s.",
        *(output, len(questions), values["answered"], len(text.encode()) / 1e6, values["take"]),
    )


def _data_uri(question: Question, max_bytes: int) -> str:
    try:
        image = open_rgb(question.path, max_side=OFFLINE_SIDE)
    except UserError as error:
        log.warning("%s The question has no picture.", error)
        return ""
    return picture(image, OFFLINE_SIDE, max_bytes).uri


# --- the server ----------------------------------------------------------------------------------

Reply = tuple[HTTPStatus, str, bytes]  # with the type of the content


class RefusedError(Exception):
    """A refused request, with its HTTPStatus."""


class InterviewServer(ThreadingHTTPServer):
    """Serves the questions of one interview and saves the answers."""

    daemon_threads = True
    allow_reuse_address = False  # a port that another server has is in use

    def __init__(self, interview: Interview, port: int = 0) -> None:
        """Listen on a port of this machine, 0 for any free one, or raise UserError."""
        self.interview = interview
        self.token = secrets.token_urlsafe(24)
        self.busy = threading.Lock()
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"Port {port} cannot be used ({getattr(error, 'strerror', None) or error}); leave "
                "--port out, and any free one is taken."
            ) from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close a connection early."""
        log.debug("A request ended early.", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: InterviewServer
    timeout = TIMEOUT
    server_version, sys_version = "latteclip", ""
    policy = "default-src 'none'"

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the address holds the token."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request without repeating it."""
        self._send(code, JSON, _json({"error": HTTPStatus(code).phrase}))

    def _answer(self, act: Callable[[str], Reply]) -> None:
        try:
            reply = act(self._checked_path())
        except RefusedError as refusal:
            self.send_error(refusal.args[0])
            return
        except UserError as error:
            reply = HTTPStatus.BAD_REQUEST, JSON, _json({"error": str(error)})
        except OSError as error:
            if full_disk(error) is None:
                raise
            log.warning(DISK_FULL)
            reply = HTTPStatus.INSUFFICIENT_STORAGE, JSON, _json({"error": DISK_FULL})
        self._send(*reply)

    def _checked_path(self) -> str:
        """Return the path after the token, if the request may be answered."""
        hosts = self.headers.get_all("Host", [])
        if hosts not in [[f"{name}:{self.server.server_port}"] for name in (HOST, "localhost")]:
            raise RefusedError(HTTPStatus.FORBIDDEN)
        page = f"http://{hosts[0]}"
        if self.headers.get("Origin", "" if self.command == "PUT" else page) != page:
            raise RefusedError(HTTPStatus.FORBIDDEN)
        start = f"/{self.server.token}/"
        if not hmac.compare_digest(self.path[: len(start)].encode(), start.encode()):
            raise RefusedError(HTTPStatus.NOT_FOUND)
        return self.path[len(start) :]

    def _get(self, path: str) -> Reply:
        interview = self.server.interview
        if path.startswith("image/"):
            return HTTPStatus.OK, WEBP, self._picture(path.removeprefix("image/"))
        if path not in ("", "result"):
            raise RefusedError(HTTPStatus.NOT_FOUND)
        with self.server.busy:
            answers, revision = read_answers(interview.path, interview.schema)
            if path == "result":
                return HTTPStatus.OK, JSON, _json(interview.result(answers))
            values = {"offline": False, "state": page_state(interview, answers, revision)}
        html, self.policy = render_page(interview, SERVED, values)
        return HTTPStatus.OK, HTML, html.encode()

    def _picture(self, text: str) -> bytes:
        """Return a picture by its number: no path comes from outside."""
        number, questions = _number(text), self.server.interview.questions
        if number is None or number >= len(questions):
            raise RefusedError(HTTPStatus.NOT_FOUND)
        file = io.BytesIO()
        open_rgb(questions[number].path, max_side=SERVED_SIDE).save(file, "WEBP", quality=90)
        return file.getvalue()

    def _put(self, path: str) -> Reply:
        if path != "answers":
            raise RefusedError(HTTPStatus.NOT_FOUND)
        interview, status = self.server.interview, HTTPStatus.OK
        answers = interview.admitted(interview.schema.parse(self._body(), "The request"))
        revision = self.headers.get("If-Match", "").strip('"')
        with self.server.busy:
            try:
                revision = write_answers(interview.path, interview.schema, answers, revision)
            except StaleRevisionError:  # another page has saved answers: this page merges them
                answers, revision = read_answers(interview.path, interview.schema)
                status = HTTPStatus.PRECONDITION_FAILED
            return status, JSON, _json(page_state(interview, answers, revision))

    def _body(self) -> bytes:
        """Return the body, after its length and type are checked."""
        length = _number(self.headers.get("Content-Length", ""))
        if length is None or "Transfer-Encoding" in self.headers:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED)
        if length > MAX_BODY:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if self.headers.get_content_type() != JSON:
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        return self.rfile.read(length)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        policy = f"{self.policy}; frame-ancestors 'none'"
        of_body = {"Content-Type": kind, "Content-Length": len(body)}
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Security-Policy": policy, **of_body}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


def _json(values: Any) -> bytes:
    return json.dumps(values).encode()


def _number(text: str) -> int | None:
    """Return a whole number below a milliard, or None."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None
