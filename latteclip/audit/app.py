"""The page that asks a person about images, with its server, and `latteclip audit`.

The page holds the answers. The server saves them after each key press, and the page that works
offline exports them as the same JSON.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup

from latteclip.audit import sampling, score
from latteclip.core.errors import UserError, full_disk
from latteclip.core.files import write_text
from latteclip.core.hashing import digest
from latteclip.data.images import open_rgb
from latteclip.evaluate.results import Audit
from latteclip.evaluate.train_predictions import MISSING
from latteclip.labels.answers import (
    UNSURE,
    Answer,
    Answers,
    AnswerSchema,
    Saved,
    StaleRevisionError,
    entries,
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
NOT_SAVED = "The system refused this, so it was not saved"
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
    content: str  # the image's checksum in hexadecimal digits
    options: list[str]
    phase: str | None = None  # TEACH or CHECK, of answers that teach
    repeat: bool = False  # whether the image is asked about a second time

    @property
    def key(self) -> str:
        return Answer(self.image_id, UNSURE, repeat=self.repeat).key

    def as_json(self, picture: str) -> dict[str, Any]:
        values: dict[str, Any] = {"image": self.image_id, "content": self.content}
        values |= {"options": self.options}
        values |= {"picture": picture, "phase": self.phase, "repeat": self.repeat}
        return {key: value for key, value in values.items() if value}


class Interview:
    """A series of questions whose answers are in one file."""

    name: str  # of the command
    images: str  # the kind of images, for the page
    folder: Path  # of a dataset's results
    path: Path  # of the answers
    schema: AnswerSchema
    total: int  # how many questions there are
    questions: list[Question]  # as far as they are known

    def answers(self) -> dict[str, Answer]:
        return self.saved().answers

    def saved(self) -> Saved:
        return self.schema.read(self.path)

    def open_questions(self, answers: Answers, *, offline: bool = False) -> list[Question]:
        """Return the next questions without an answer, and offline all of them."""
        return [one for one in self.questions if one.key not in answers]

    def read_file(self, path: str) -> Saved:
        return self.schema.read_exported(path)

    def status(self, _: Answers) -> str:
        """Return a sentence for the page."""
        return ""

    def result(self, answers: Answers) -> dict[str, Any]:
        """Return a sentence, tables of a head and rows, and steps: a text and a command each."""
        raise NotImplementedError

    def state(self, answers: Answers, revision: str) -> dict[str, Any]:
        """Return what the page must know when it opens and after each answer."""
        upcoming = self.open_questions(answers)  # labels may learn, and the status follows
        return {
            "answers": entries(answers.values()),
            "revision": revision,
            "answered": min(len(answers), self.total),
            "total": self.total,
            "status": self.status(answers),
            "upcoming": [one.as_json(f"image/{one.number}") for one in upcoming[:UPCOMING]],
        }


class AuditSession(Interview):
    """An audit of a dataset's results: a plan, its first questions, and the answers to them."""

    name = "audit"

    def __init__(self, folder: str | Path, split: str | None, budget: int) -> None:
        """Begin or continue an audit of a split (see `read_population`) with `budget` questions."""
        self.folder = Path(folder)
        self.population = sampling.read_population(self.folder, split)
        self.images = f"{self.population.split} images"
        plan_file, self.path = sampling.audit_files(self.folder, self.population.split)
        self.plan = sampling.read_or_draw(plan_file, self.population)
        self.schema = self.plan.schema(self.population.dataset)
        ids, paths = self.population.image_ids, self.population.paths
        contents = [checksum.hex() for checksum in self.population.checksums]
        self.questions = [
            Question(
                *(number, ids[row], paths[row], contents[row]),
                offered_classes(self.population, row),
            )
            for number, row in enumerate(self.plan.order[:budget].tolist())
        ]
        self.total = len(self.questions)

    def result(self, answers: Answers) -> dict[str, Any]:
        return score.as_texts(self.folder, self.score({**self.saved().asked, **answers}))

    def score(self, answers: Answers) -> Audit:
        """Score every run in the folder by answers, or raise UserError where these are too few."""
        runs = [one for one in sampling.runs_in(self.folder) if one.predictions]
        dataset = self.population.dataset
        predictions = score.read_predictions(dataset, self.plan, runs)
        return score.score(dataset, self.plan, predictions, answers)


def offered_classes(population: sampling.Population, row: int) -> list[str]:
    """Return the classes that runs predict of an image, then CLIP's next best, then random ones."""
    rng = np.random.default_rng(int(digest(population.image_ids[row])[:16], 16))
    predictions = population.predictions[row]
    predicted = dict.fromkeys(predictions[predictions != MISSING].tolist())
    random = rng.permutation(len(population.classnames))
    others = dict.fromkeys([*population.ranked[row].tolist(), *random.tolist()])
    likely = list(predicted | others)[: max(OFFERED, len(predicted))]
    return in_class_order(population.classnames, likely)


def in_class_order(classnames: Sequence[str], likely: Sequence[int]) -> list[str]:
    """Return all classes if they are few, or the likely ones in an order that tells nothing."""
    labels = range(len(classnames)) if len(classnames) <= ALL_OFFERED else sorted(likely)
    return [classnames[label] for label in labels]


# --- the command ---------------------------------------------------------------------------------


def audit(
    results: str,
    /,
    split: Literal["test", "train"] | None = None,
    budget: int = 100,
    offline: str | None = None,
    answers: str | None = None,
    score: bool = False,
    port: int = 0,
    no_browser: bool = False,
) -> None:
    """Ask you about a few images, and report whether tuning helped.

    The page is on this machine alone, and its address is a secret. Images are drawn at random,
    more of them where an answer tells more. No model is trained on the answers. They are in
    RESULTS/audit, and the workflow scores models by them.

    Args:
        split: whose images (default: test, where there are any); of the training images beside a
            test split, those that no model learned from
        answers: import the answers that it exports
        score: print the estimate from the answers so far
    """
    session = AuditSession(results, split, budget)
    if offline:
        write_offline(session, offline)
    elif answers or score:
        if answers:
            import_answers(session, answers)
        print_result(session)
    else:
        serve(session, port, browser=not no_browser)


def print_result(interview: Interview) -> None:
    """Print the result by the saved answers, and what to do next."""
    result = interview.result(interview.answers())
    for head, rows in result["tables"]:
        print(pd.DataFrame(rows, columns=head).to_string(index=False), end="\n\n")
    print(result["sentence"])
    for text, command in result["steps"]:
        print(f"\n{text}", *([f"\n  {command}"] if command else []), sep="")


def import_answers(interview: Interview, path: str) -> None:
    """Add the answers of an exported file about images that have no answer yet."""
    exported, saved = interview.read_file(path), interview.saved()
    exported.warn(path, interview.folder)
    answers = {**exported.answers, **saved.answers}
    try:
        interview.schema.write(interview.path, answers, saved.revision)
    except StaleRevisionError:
        raise UserError(f"{interview.path} changed meanwhile; run the command again.") from None
    log.info(
        "Took %d of %d answers from %s: an image that has an answer keeps it.",
        *(len(answers) - len(saved.answers), len(exported.answers), path),
    )


def serve(interview: Interview, port: int, *, browser: bool) -> None:
    """Ask the questions on a page of this machine until Ctrl-C, then print the result if any."""
    with InterviewServer(interview, port) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"The page: {server.address}\nEvery answer is saved. Ctrl-C ends.", flush=True)
        if browser:
            webbrowser.open(server.address)
        server.serve_forever()
    with contextlib.suppress(score.TooFewAnswersError):
        print_result(interview)


# --- the page ------------------------------------------------------------------------------------


def render_page(interview: Interview, sources: str, values: Mapping[str, Any]) -> tuple[str, str]:
    """Return the page with values for its script, and the policy that allows these `sources`."""
    script = (files(PACKAGE) / "templates" / "audit.js").read_text(encoding="utf-8")
    policy = render.policy(script, sources)
    template = render.environment(PACKAGE).get_template("audit.html")
    text = template.render(
        policy=policy,
        style=Markup(render.style()),
        script=Markup(script),
        interview=interview,
        classnames=sorted(interview.schema.classnames),
        all_offered=len(interview.schema.classnames) <= ALL_OFFERED,
        values={**interview.schema.header(), **values},
    )
    return text, policy


def write_offline(interview: Interview, output: str) -> None:
    """Write a page that needs no server, with all open questions, or raise UserError."""
    questions = interview.open_questions(interview.answers(), offline=True)
    if not questions:
        raise UserError(
            f"All {interview.total} images are answered already; a larger --budget asks more."
        )
    max_bytes = max(MIN_PICTURE, min(MAX_PICTURE, TOTAL_BYTES // len(questions)))
    folder = shlex.quote(str(interview.folder))
    values = {
        "offline": True,
        "take": f"latteclip {interview.name} {folder} --answers answers.json",
        "answered": interview.total - len(questions),
        "questions": [question.as_json(_data_uri(question, max_bytes)) for question in questions],
    }
    write_text(output, render_page(interview, OFFLINE, values)[0])
    log.info(
        "Wrote %s with %d images. Open it in any browser, export the answers there, and run %s.",
        *(output, len(questions), values["take"]),
    )


def _data_uri(question: Question, max_bytes: int) -> str:
    try:
        image = open_rgb(question.path, max_side=OFFLINE_SIDE)
    except UserError as error:
        log.warning("%s The question has no picture.", error)
        return ""
    return picture(image, OFFLINE_SIDE, max_bytes).uri


# --- the server ----------------------------------------------------------------------------------
# Any page that is open in a browser can send requests to 127.0.0.1, and a stranger's domain name
# can point there. So each request must hold a secret token and name this server as its host. A
# request that names its origin must come from this page. One that changes something must name it.

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
                f"Port {port} cannot be used ({error}); without --port, a free one is taken."
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

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the address holds the token."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
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
        except (ConnectionError, TimeoutError):  # of a browser that closes a connection early
            raise
        except OSError as error:
            status, message = HTTPStatus.INSUFFICIENT_STORAGE, DISK_FULL
            if full_disk(error) is None:
                status, message = HTTPStatus.INTERNAL_SERVER_ERROR, f"{NOT_SAVED}: {error}."
            log.warning(message)
            reply = _error(status, message)
        self._send(*reply)

    do_PUT = do_GET  # noqa: N815

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

    def _reply(self, path: str) -> Reply:
        interview = self.server.interview
        image_of = {f"image/{one.number}": one.path for one in interview.questions}
        if self.command == "PUT" and path == "answers":
            return self._save(interview)
        if self.command == "GET" and path in image_of:  # no path comes from outside
            file = io.BytesIO()
            open_rgb(image_of[path], max_side=SERVED_SIDE).save(file, "WEBP", quality=90)
            return HTTPStatus.OK, WEBP, file.getvalue()
        if self.command == "PUT" or path not in ("", "result"):
            raise RefusedError(HTTPStatus.NOT_FOUND)
        with self.server.busy:
            saved = interview.saved()
            if path == "result":
                return HTTPStatus.OK, JSON, _json(interview.result(saved.answers))
            values = {"state": interview.state(saved.answers, saved.revision)}
        html, self.policy = render_page(interview, SERVED, values)
        return HTTPStatus.OK, HTML, html.encode()

    def _save(self, interview: Interview) -> Reply:
        """Save the answers of the page, or return those that another page has saved."""
        answers = interview.schema.parse(self._body(), "The request").answers
        revision, status = self.headers.get("If-Match", "").strip('"'), HTTPStatus.OK
        with self.server.busy:
            try:
                revision = interview.schema.write(interview.path, answers, revision)
            except StaleRevisionError:
                saved, status = interview.saved(), HTTPStatus.PRECONDITION_FAILED
                answers, revision = saved.answers, saved.revision
            return status, JSON, _json(interview.state(answers, revision))

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
        for name, value in {**HEADERS, "Content-Security-Policy": policy, **of_body}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


def _json(values: Any) -> bytes:
    return json.dumps(values).encode()


def _error(status: HTTPStatus, message: str = "") -> Reply:
    return status, JSON, _json({"error": message or status.phrase})
