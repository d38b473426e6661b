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
import secrets
import shlex
import threading
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from latteclip.audit.sampling import (
    FIRST_METHODS,
    Population,
    answers_path,
    left_out_table,
    plan_path,
    read_or_draw,
    read_population,
    runs_with,
)
from latteclip.audit.score import (
    MAX_IMAGES,
    RunFiles,
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
from latteclip.core.terminal import one_line
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
MAX_LENGTH_DIGITS = 9
TIMEOUT = 30  # seconds that a connection may wait for the rest of a request
SERVED_SIDE, OFFLINE_SIDE = 1024, 640  # pixels of a picture
SERVED = "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
OFFLINE = "img-src data:"
# Bytes before base64: of all pictures of the offline page, and of each at most and at least.
TOTAL_BYTES, MAX_PICTURE, MIN_PICTURE = 18_000_000, 90_000, 4_000
DISK_FULL = (
    "The disk is full, so this was not saved. Free some space and do it again; all earlier answers "
    "are saved."
)
JSON, HTML, WEBP = "application/json", "text/html; charset=utf-8", "image/webp"
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
        """The key of its answer."""
        return Answer(self.image_id, UNSURE, repeat=self.repeat).key

    def as_json(self, picture: str) -> dict[str, Any]:
        """Return the question for the page."""
        values = {"image": self.image_id, "options": self.options, "picture": picture}
        values |= {} if self.phase is None else {"phase": self.phase}
        return {**values, "repeat": True} if self.repeat else values


class Interview:
    """A series of questions whose answers are in one file."""

    title: str  # of the page
    images: str  # the kind of images, for the page
    command: str  # that goes on
    purpose: str  # of the command that takes exported answers
    path: Path  # of the answers
    schema: AnswerSchema
    total: int  # how many questions there are

    def question(self, number: int) -> Question:
        """Return a question by its number, 0, 1, ..., or raise IndexError."""
        raise NotImplementedError

    def all_open(self, answers: Mapping[str, Answer]) -> list[Question]:
        """Return all questions without an answer."""
        raise NotImplementedError

    def open_questions(self, answers: Mapping[str, Answer]) -> list[Question]:
        """Return the next questions without an answer, at most UPCOMING of them."""
        raise NotImplementedError

    def admitted(self, answers: Mapping[str, Answer]) -> dict[str, Answer]:
        """Return answers as they are saved, or raise UserError."""
        return dict(answers)

    def read_file(self, path: str) -> dict[str, Answer]:
        """Return the answers of a file, or raise UserError."""
        return read_exported(path, self.schema)

    def answered(self, answers: Mapping[str, Answer]) -> int:
        """Return how many of the questions have an answer."""
        return min(len(answers), self.total)

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

        Raises:
            UserError: there is nothing to audit, or the plan is of other images.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder} is not a folder; name the results of a dataset.")
        self.population = read_population(folder, split)
        self.dataset, self.images = self.population.dataset, f"{self.population.split} images"
        self.title, self.command = "Audit", f"latteclip audit {shlex.quote(str(folder))}"
        self.purpose = "takes them and says which model is best"
        split = self.population.split
        self.plan = read_or_draw(plan_path(self.folder, split), self.population)
        self.path = answers_path(self.folder, split)
        self.schema = self.plan.schema(self.dataset)
        self.total = min(budget, len(self.population.image_ids))

    def answers(self) -> dict[str, Answer]:
        """Return the answers that are saved."""
        return read_answers(self.path, self.schema)[0]

    def question(self, number: int) -> Question:
        row = int(self.plan.order[: self.total][number])
        ids, paths = self.population.image_ids, self.population.paths
        return Question(number, ids[row], paths[row], offered_classes(self.population, row))

    def all_open(self, answers: Mapping[str, Answer]) -> list[Question]:
        return [*map(self.question, self._open(answers))]

    def open_questions(self, answers: Mapping[str, Answer]) -> list[Question]:
        return [*map(self.question, self._open(answers)[:UPCOMING])]

    def _open(self, answers: Mapping[str, Answer]) -> list[int]:
        return [number for number, name in enumerate(self._drawn_ids) if name not in answers]

    def answered(self, answers: Mapping[str, Answer]) -> int:
        return sum(name in answers for name in self._drawn_ids)

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
        runs = [self._run(*run) for run in runs_with(self.folder)]
        predictions = read_predictions(self.dataset, self.plan, runs)
        return score(self.dataset, self.plan, predictions, answers)

    def _run(self, method: str, seed: int) -> RunFiles:
        folder = self.folder / method / f"seed{seed}"
        left_out = left_out_table(folder)
        return RunFiles(
            method,
            seed,
            str(folder / "metrics.json"),
            str(folder / "predictions.parquet"),
            str(left_out) if left_out.is_file() else None,
            has_model=(folder / "model").is_dir() or method in FIRST_METHODS,
        )

    @cached_property
    def _drawn_ids(self) -> list[str]:
        return [self.population.image_ids[row] for row in self.plan.order[: self.total]]


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


def open_audit(folder: str, split: str | None, budget: int) -> AuditSession:
    """Open the audit of a dataset's results, or raise UserError."""
    if not 1 <= budget <= MAX_IMAGES:
        raise UserError(f"--budget {budget} is no number of images between 1 and {MAX_IMAGES:,}.")
    session = AuditSession(folder, split, budget)
    if session.total < budget:
        log.warning(
            "The %s split has %d images that can be asked about, fewer than the budget of %d.",
            *(session.population.split, session.total, budget),
        )
    return session


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
    """Return the page, and the policy that forbids it everything else.

    Args:
        interview: the questions.
        sources: directives of the policy beside style and script.
        values: for the script.
    """
    folder = files(PACKAGE) / "templates"
    script = (folder / "audit.js").read_text(encoding="utf-8")
    style = render.style() + (folder / "audit.css").read_text(encoding="utf-8")
    policy = render.policy(script, sources)
    schema = interview.schema
    text = (
        render.environment(PACKAGE)
        .get_template("audit.html")
        .render(
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            title=interview.title,
            dataset=schema.dataset,
            images=interview.images,
            classnames=sorted(schema.classnames),
            all_offered=len(schema.classnames) <= ALL_OFFERED,
            values={**schema.header(), **values},
        )
    )
    return text, policy


def page_state(
    interview: Interview, answers: Mapping[str, Answer], revision: str
) -> dict[str, Any]:
    """Return what the page must know when it opens and after each answer."""
    upcoming = interview.open_questions(answers)  # labels may learn, and the status follows
    return {
        "revision": revision,
        "answered": interview.answered(answers),
        "total": interview.total,
        "status": interview.status(answers),
        "upcoming": [question.as_json(f"image/{question.number}") for question in upcoming],
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
        "purpose": interview.purpose,
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


class RefusedError(Exception):
    """A refused request."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


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
        """The address of the page."""
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
        """Send the page, a picture or the result."""
        self._handle(self._get)

    def do_PUT(self) -> None:
        """Save all answers."""
        self._handle(self._put)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the address holds the token."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse malformed requests without repeating them."""
        self.close_connection = True
        self._send(code, JSON, _json({"error": HTTPStatus(code).phrase}))

    def _handle(self, act: Callable[[str], tuple[HTTPStatus, str, bytes]]) -> None:
        try:
            reply = act(self._checked_path())
        except RefusedError as refusal:
            self.close_connection = True  # perhaps with a body that was not read
            reply = refusal.status, JSON, _json({"error": str(refusal)})
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
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        host = self.headers.get("Host", "")
        if len(self.headers.get_all("Host", [])) != 1 or host not in hosts:
            raise RefusedError(HTTPStatus.FORBIDDEN, "This server has another name.")
        origin = self.headers.get("Origin")
        if (origin is None and self.command == "PUT") or origin not in (None, f"http://{host}"):
            raise RefusedError(HTTPStatus.FORBIDDEN, "Other pages may not send requests.")
        start, token, *rest = self.path.split("/", 2)
        expected = self.server.token.encode()
        if start or not rest or not hmac.compare_digest(token.encode(), expected):
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
        return rest[0]

    def _get(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        interview = self.server.interview
        if path.startswith("image/"):
            return HTTPStatus.OK, WEBP, self._picture(path.removeprefix("image/"))
        if path not in ("", "result"):
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
        with self.server.busy:
            answers, revision = read_answers(interview.path, interview.schema)
            if path == "result":
                return HTTPStatus.OK, JSON, _json(interview.result(answers))
            state = page_state(interview, answers, revision) | interview.schema.document(answers)
            values = {"offline": False, "state": state}
        html, self.policy = render_page(interview, SERVED, values)
        return HTTPStatus.OK, HTML, html.encode()

    def _picture(self, number: str) -> bytes:
        """Return a picture by its number: no path comes from outside."""
        if not (number.isascii() and number.isdecimal() and len(number) < MAX_LENGTH_DIGITS):
            raise RefusedError(HTTPStatus.NOT_FOUND, "Pictures have numbers.")
        try:
            question = self.server.interview.question(int(number))
        except IndexError:
            raise RefusedError(HTTPStatus.NOT_FOUND, "No picture has this number.") from None
        file = io.BytesIO()
        open_rgb(question.path, max_side=SERVED_SIDE).save(file, "WEBP", quality=90)
        return file.getvalue()

    def _put(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        if path != "answers":
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here.")
        interview = self.server.interview
        answers = interview.admitted(interview.schema.parse(self._body(), "The request"))
        with self.server.busy:
            try:
                expected = self.headers.get("If-Match", "").strip('"')
                revision = write_answers(interview.path, interview.schema, answers, expected)
            except StaleRevisionError:  # another page has saved answers: this page merges them
                answers, revision = read_answers(interview.path, interview.schema)
                state = page_state(interview, answers, revision)
                state |= interview.schema.document(answers)
                return HTTPStatus.PRECONDITION_FAILED, JSON, _json(state)
            return HTTPStatus.OK, JSON, _json(page_state(interview, answers, revision))

    def _body(self) -> Any:
        """Return the JSON value of the body, after its length and type are checked."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") is not None or not (
            length.isascii() and length.isdecimal()
        ):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "The request lacks its length.")
        if len(length) > MAX_LENGTH_DIGITS or int(length) > MAX_BODY:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "That is too much.")
        if self.headers.get("Content-Type", "").split(";")[0].strip().lower() != JSON:
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Answers are JSON.")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            reason = f"The body is not valid JSON ({one_line(error, 80)})."
            raise RefusedError(HTTPStatus.BAD_REQUEST, reason) from None

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{self.policy}; frame-ancestors 'none'",
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


def _json(values: Any) -> bytes:
    return json.dumps(values).encode()
