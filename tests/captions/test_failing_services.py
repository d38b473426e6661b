"""What a service refuses, at the level of the command: one sentence, and paid answers are kept."""

import json
from dataclasses import dataclass

import pytest
from support import chat_server, decision_server
from support.captioning import SETTINGS, of_engine
from support.decision_server import sentence
from support.scoring import N, ScoredDataset
from support.sections import changed

from latteclip.captions.runner import MAX_REFUSED
from latteclip.cli import main
from latteclip.core import tables

SOON = {"retry-after-ms": 1}
PAID = 3  # answers before the service ends


@dataclass
class Service:
    """A command that asks a server of the tests."""

    engine: str
    server: object
    dataset: ScoredDataset
    address: str
    key: str

    def words(self, captioner, scores):
        images, labels, embeddings = self.dataset.inputs
        if self.engine == "openai":
            return ["caption-images", "--images", images, "--prompt", "What?"]
        of_classes = ["--pseudo-labels", labels, "--class-embeddings", embeddings]
        chosen = ["--scores", json.dumps({"kind": "decisions", "topk": 3, **scores})]
        return ["score-classes", "--images", images, *of_classes, *chosen, "--prompt", ""]

    def run(self, scores=None, **captioner):
        """Ask about all images, one after another. The exit status."""
        model = {"openai": chat_server.MODEL, "decisions": decision_server.MODEL}
        usual = {"model": model[self.engine], "concurrency": 1, "retries": 1}
        usual |= {"requests_per_second": 1000, **of_engine(self.engine)}
        settings = changed(SETTINGS, **{**usual, **captioner})
        folder = self.dataset.folder
        words = [
            *self.words(captioner, scores or {}),
            *("--captioner", json.dumps(settings.model_dump()), "--threads", "1"),
            *("--output", str(self.dataset.output), "--store", str(folder / "store")),
        ]
        return main.main(words)

    def columns(self):
        """The table that the command wrote."""
        schema = tables.CAPTIONS if self.engine == "openai" else tables.CLASS_SCORES
        return tables.read(self.dataset.output, schema).to_pydict()

    def fail(self, failure, from_number=0):
        """Have the server answer so from the request of a number on, counted from 0."""
        refused = failure if len(failure) == 3 else (*failure, {})
        if self.engine == "openai":
            body = json.dumps(refused[2]).encode()
            refused = (*refused[:2], body)
        self.server.fail = lambda number, _: refused if number >= from_number else None

    def recover(self):
        self.server.fail = lambda number, body: None


@pytest.fixture(params=["openai", "decisions"])
def service(request, tmp_path, monkeypatch):
    dataset = ScoredDataset(tmp_path)
    module = {"openai": chat_server, "decisions": decision_server}[request.param]
    address = f"{request.param.upper()}_BASE_URL"
    key = f"{request.param.upper()}_API_KEY"
    with module.serving() as server:
        monkeypatch.setenv(address, server.url)
        monkeypatch.setenv(key, "a-key-of-the-tests")
        yield Service(request.param, server, dataset, address, key)


def refusal(capsys):
    """The one sentence at the end of what the command prints."""
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:], lines
    return errors[0]


def test_without_an_address_the_variable_is_named(service, monkeypatch, capsys):
    monkeypatch.delenv(service.address)
    assert service.run() == 2
    assert f"export {service.address}=" in refusal(capsys)
    assert not service.dataset.output.exists()


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_a_valid_key_nothing_is_asked_twice(service, monkeypatch, capsys, key):
    if key is None:
        monkeypatch.delenv(service.key)
    else:
        monkeypatch.setenv(service.key, key)
    service.fail((401, {}, sentence("This key is not known.")))
    assert service.run() == 2
    printed = refusal(capsys)
    assert service.key in printed and "This key is not known" in printed
    assert len(service.server.requests) == 1
    assert not service.dataset.output.exists()


NO_QUOTA = {"error": {"message": "You exceeded it.", "code": "insufficient_quota"}}
ENDS = {
    "no credit": (402, {}, sentence("Top up.")),
    "no quota": (429, SOON, NO_QUOTA),
    "no right": (403, {}, sentence("Not with this model.")),
    "busy": (429, SOON, sentence("Slow down.")),
    "broken": (500, SOON, sentence("Sorry.")),
    "down": (503, SOON, sentence("Back soon.")),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_was_paid_for_is_kept_where_a_service_ends(service, monkeypatch, capsys, end):
    """However long it lasts: requests are bounded, and a rerun asks for the rest alone."""
    most = 2  # requests that fail one after another
    monkeypatch.setattr("latteclip.captions.runner.MAX_CONSECUTIVE_FAILURES", most)
    status, _, body = ENDS[end]
    service.fail(ENDS[end], from_number=PAID)
    assert service.run() == 2
    printed = refusal(capsys)
    assert f"HTTP {status}" in printed and body["error"]["message"][:-1] in printed
    asked = len(service.server.requests)
    one_by_one = {"busy": 2 * most, "broken": 2 * most, "down": 2 * most, "no quota": 2}
    assert asked == PAID + one_by_one.get(end, 1)
    assert ("no credit is left" in printed) == (end in ("no credit", "no quota"))
    assert not service.dataset.output.exists()
    service.recover()
    assert service.run() == 0
    assert len(service.server.requests) == asked + N - PAID
    assert not any(service.columns()["error"])


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_picture_is_missing_and_too_many_are_an_error(service, capsys, status):
    bad = (status, {}, sentence("No such picture."))
    if service.engine == "openai":
        bad = (*bad[:2], json.dumps(bad[2]).encode())
    service.server.fail = lambda number, body: bad if number == PAID else None
    assert service.run(max_failed=0.0) == 2
    printed = refusal(capsys)
    assert "captioner.max_failed" in printed and "run again" in printed
    service.server.requests.clear()  # the refused one is asked again, as the first
    service.server.fail = lambda number, body: bad if number == 0 else None
    assert service.run(max_failed=0.2) == 0
    [error] = filter(None, service.columns()["error"])
    assert f"HTTP {status}: No such picture" in error
    assert len(service.server.requests) == 1


def test_a_server_that_refuses_each_request_is_given_up_soon(service, capsys):
    service.fail((400, {}, sentence("Model other is unknown.")))
    assert service.run() == 2
    printed = refusal(capsys)
    assert "Model other is unknown" in printed and "captioner.model" in printed
    assert len(service.server.requests) == MAX_REFUSED


@pytest.mark.parametrize("max_cost", [None, 1.0])
def test_refused_pictures_do_not_end_a_rerun_which_asks_about_them_alone(
    service, monkeypatch, capsys, max_cost
):
    if service.engine == "openai" and max_cost:
        pytest.skip("the chat server names no cost")
    monkeypatch.setattr("latteclip.captions.runner.MAX_REFUSED", 2)
    monkeypatch.setattr("latteclip.captions.runner.MAX_CONSECUTIVE_FAILURES", 3)
    bad = (400, {}, sentence("Flagged."))
    if service.engine == "openai":
        bad = (*bad[:2], json.dumps(bad[2]).encode())
    pictures = []

    def fail(number, body):
        if json.dumps(body) not in pictures:
            pictures.append(json.dumps(body))
        return bad if pictures.index(json.dumps(body)) % 2 else None

    service.server.fail = fail
    scores = {"max_cost": max_cost}
    assert service.run(scores, max_failed=0.9) == 0
    refused = sum(error is not None for error in service.columns()["error"])
    assert refused == N // 2 >= 3
    service.server.requests.clear()
    assert service.run(scores, max_failed=0.9) == 0
    assert len(service.server.requests) == refused
    assert service.run(scores, max_failed=0.0) == 2
    assert "Flagged" in refusal(capsys)


@pytest.mark.parametrize("service", ["decisions"], indirect=True)  # captions have no budget
def test_a_budget_that_ends_in_the_middle_is_no_error(service):
    assert service.run({"max_cost": "1 tokens"}) == 0
    assert len(service.server.requests) == 1  # the first says what an answer costs
    service.server.requests.clear()
    usage = {"input_tokens": 100, "output_tokens": 0}
    service.server.change = lambda number, reply: reply | {"usage": usage}
    assert service.run({"max_cost": "100000 tokens"}) == 0
    assert len(service.server.requests) == N - 1
    assert all(service.columns()["options"])
