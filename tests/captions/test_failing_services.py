"""What a service refuses, at the level of the command: one sentence, and paid answers are kept."""

import base64
import contextlib
import json
import shutil
import signal
import sqlite3

import pyarrow.parquet as pq
import pytest
from support.captioning import SETTINGS, N, ScoredDataset, changed
from support.servers import KEY, answer_at_once, sentence

from latteclip.captions.answers import AnswerCache, AnswersMetadata
from latteclip.cli import main
from latteclip.core import tables
from latteclip.core.errors import Terminated

SOON = {"retry-after-ms": 1}
PAID = 3  # answers before the service ends


class Command:
    """A command that asks a service about all images, one after another."""

    def __init__(self, service, folder):
        self.service = service
        self.dataset = ScoredDataset(folder)
        self.folder, self.output = folder, self.dataset.output
        self.name = service.engine.upper()

    def __call__(self, **captioner):
        """The exit status."""
        usual = {
            "model": self.service.model,
            "engine": self.service.engine,
            "batch_size": 1,
        }
        settings = changed(SETTINGS, **{**usual, **captioner})
        images, labels, embeddings = self.dataset.inputs
        words = ["caption-images", "--images", images, "--prompt", "What?"]
        if self.service.engine == "decisions":
            words = ["score-classes", "--images", images, "--prompt", ""]
            words += ["--pseudo-labels", labels, "--class-embeddings", embeddings]
            words += ["--scores", '{"kind": "decisions"}']
        words += ["--captioner", json.dumps(settings.model_dump()), "--threads", "1"]
        words += ["--output", str(self.output), "--store", str(self.folder / "store")]
        return main.main([*words, "--log", str(self.folder / "logs" / "ask.log")])

    def errors(self):
        return [error for error in tables.read(self.output)["error"].to_pylist() if error]

    def fail(self, failure, is_hit=lambda number: True):
        """Have the service answer so to the requests of some numbers, counted from 0."""
        self.service.fail = lambda number, _: failure if is_hit(number) else None


@pytest.fixture
def ask(service, tmp_path):
    return Command(service, tmp_path)


def refusal(capsys):
    """The one sentence at the end of what the command prints."""
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:], lines
    return errors[0]


@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_a_valid_key_nothing_is_asked_twice(ask, monkeypatch, capsys, key):
    monkeypatch.setenv(f"{ask.name}_API_KEY", key)
    assert ask() == 2
    printed = refusal(capsys)
    assert f"{ask.name}_API_KEY" in printed and "is not known" in printed
    assert len(ask.service.requests) == 1
    assert not ask.output.exists()


NO_QUOTA = {"error": {"message": "You exceeded it.", "code": "insufficient_quota"}}
ENDS = {
    "no credit": (402, {}, sentence("Top up.")),
    "no quota": (429, SOON, NO_QUOTA),
    "busy": (429, SOON, sentence("Slow down.")),
}
MOST = 2  # requests that fail one after another
# After those that were paid for.
ASKED = {"no credit": 1, "no quota": 2, "busy": 2 * MOST}


@pytest.mark.parametrize("end", ENDS)
def test_what_was_paid_for_is_kept_where_a_service_ends(ask, monkeypatch, capsys, end):
    """However long it lasts: requests are bounded, and a rerun asks for the rest alone."""
    monkeypatch.setattr("latteclip.captions.answers.MAX_CONSECUTIVE_FAILURES", MOST)
    status, _, body = ENDS[end]
    ask.fail(ENDS[end], lambda number: number >= PAID)
    assert ask() == 2
    printed = refusal(capsys)
    assert f"code: {status}" in printed
    assert body["error"]["message"].rstrip(".") in printed
    asked = len(ask.service.requests)
    assert asked == PAID + ASKED[end]
    assert not ask.output.exists()
    ask.fail(None)
    assert ask() == 0
    assert len(ask.service.requests) == asked + N - PAID
    assert ask.errors() == []


def test_a_signal_while_an_answer_is_written_loses_no_other(ask, monkeypatch):
    signals = iter([signal.SIGINT])

    def interrupted(cache, commit=AnswerCache.commit):
        for number in signals:
            raise Terminated(number)
        commit(cache)

    with monkeypatch.context() as patch:
        answer_at_once(patch)
        patch.setattr(AnswerCache, "commit", interrupted)
        patch.setattr("latteclip.captions.answers.ending_in_order", contextlib.nullcontext)
        assert ask(batch_size=PAID) == 128 + signal.SIGINT
    assert len(ask.service.requests) == PAID
    assert ask() == 0
    assert len(ask.service.requests) == N


def every_second(pictures, failure):
    """Answer so about every second picture, in each run."""

    def fail(number, body):
        shown = json.dumps(body)
        if shown not in pictures:
            pictures.append(shown)
        return failure if pictures.index(shown) % 2 else None

    return fail


def test_refused_pictures_are_counted_and_no_failures(ask, monkeypatch):
    monkeypatch.setattr("latteclip.captions.answers.MAX_CONSECUTIVE_FAILURES", 2)
    ask.service.fail = every_second([], (422, {}, sentence("Flagged.")))
    for n_asked in (N, N // 2):  # a rerun asks about them alone
        ask.service.requests.clear()
        assert ask(max_failed=0.0) == 0
        assert len(ask.service.requests) == n_asked
        assert len(ask.errors()) == N // 2
        assert tables.read_metadata(ask.output, AnswersMetadata).refused == N // 2
    assert "code: 422" in ask.errors()[0]


@pytest.mark.parametrize("failure", [(200, {}, b'{"choices": ['), (504, {}, b"")], ids=str)
def test_what_fails_is_asked_once_more_in_the_same_run(ask, monkeypatch, capsys, failure):
    monkeypatch.setattr("latteclip.captions.engines.openai.RETRIES", 0)
    ask.fail(failure, lambda number: number in (1, 4))
    assert ask(max_failed=0.0) == 0
    assert ask.errors() == []
    assert len(ask.service.requests) == N + 2
    assert f"Answers to {N} questions to {ask.service.model}, " in capsys.readouterr().err
    ask.service.fail = every_second([], failure)
    ask.output.unlink()
    shutil.rmtree(ask.folder / "store")
    with monkeypatch.context() as patch:
        patch.setattr("latteclip.captions.answers.MAX_CONSECUTIVE_FAILURES", 2)
        assert ask(max_failed=0.5) == 0  # although each second question fails as well
    assert len(ask.errors()) == N // 2
    assert ask(max_failed=0.4) == 2
    printed = refusal(capsys)
    assert "captioner.max_failed" in printed and "run again" in printed


def test_a_server_that_refuses_each_request_is_given_up(ask, monkeypatch, capsys):
    monkeypatch.setattr("latteclip.captions.answers.MAX_CONSECUTIVE_FAILURES", MOST)
    ask.fail((400, {}, sentence("Model other is unknown.")))
    assert ask() == 2
    printed = refusal(capsys)
    assert "Model other is unknown" in printed and "captioner.model" in printed
    assert len(ask.service.requests) == MOST


# --- secrets -------------------------------------------------------------------------------------

PASSWORD = "pass-word-0123"
LOGIN = base64.b64encode(f"me:{PASSWORD}".encode()).decode()


def text_of(file):
    """A file as text; a table or a database, whose pages are packed, as its rows."""
    if file.suffix == ".parquet":
        return f"{pq.read_metadata(file).metadata} {pq.read_table(file).to_pydict()}"
    if file.suffix == ".sqlite":
        with contextlib.closing(sqlite3.connect(file)) as opened:
            return "\n".join(opened.iterdump())
    return file.read_text()


@pytest.mark.parametrize(
    ("status", "failed", "exit_status"), [(500, (1, 3, 7, 8), 0), (401, (1,), 2)]
)
def test_no_secret_is_left(ask, monkeypatch, capfd, status, failed, exit_status):
    """The server repeats the request in its errors."""
    monkeypatch.setattr("latteclip.captions.engines.openai.RETRIES", 0)
    service = ask.service
    service.key = None
    monkeypatch.setenv(
        f"{ask.name}_BASE_URL", service.url.replace("//", f"//me:{PASSWORD}@")
    )

    def fail(number, body):
        headers = json.dumps(service.requests[number]["headers"])
        content = sentence(f"{headers} {KEY} {PASSWORD} \x1b[2J")
        return (status, {}, content) if number in failed else None

    service.fail = fail
    assert ask(max_failed=0.9 * (exit_status == 0)) == exit_status
    sent = service.requests[0]["headers"]["authorization"].removeprefix("Bearer ")
    assert sent in (KEY, f"Basic {LOGIN}")  # so there was something to leave
    paths = (ask.output, *ask.folder.glob("store/*"), *ask.folder.glob("logs/*"))
    files = [text_of(path) for path in paths if path.exists()]
    left = "\n".join([*files, *capfd.readouterr()])
    assert "***" in left
    assert not [secret for secret in (KEY, PASSWORD, LOGIN, "\x1b") if secret in left]
