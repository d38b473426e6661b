"""Fake services on 127.0.0.1 that speak the protocols of the engines openai and decisions."""

import asyncio
import base64
import contextlib
import io
import json
import threading
import time
from concurrent.futures import wait
from http.server import BaseHTTPRequestHandler

import pytest
from PIL import Image
from support.captioning import mean_colour
from support.web import listening

KEY = "key-0123456789"


class RefusedError(Exception):
    """A status and the content of a reply."""


def sentence(text):
    return {"error": {"message": text, "type": "invalid_request_error"}}


class FakeService:
    """Its requests, and how it replies.

    `fail(number, body)` may return (status, headers, content) in place of the answer to the request
    of that number, counted from 0. `change(number, reply)` may change a reply. `pause` seconds pass
    before each answer, and `drip` between all bytes of a reply. It wants `key`, if there is one.
    Addresses that it does not know are answered by `elsewhere`.
    """

    def __init__(self):
        self.requests, self.active, self.most_active, self.answered = [], 0, 0, 0
        self.fail = lambda number, body: None
        self.change = lambda number, reply: reply
        self.pause = self.drip = 0.0
        self.key = None
        self.elsewhere = (404, {}, {})
        self._lock = threading.Lock()

    def reply(self, path, body, headers):
        if path != self.path:
            return 404, {}, sentence("no such path")
        with self._lock:
            number = len(self.requests)
            self.requests.append({"body": body, "headers": headers})
            self.active += 1
            self.most_active = max(self.active, self.most_active)
        try:
            if self.pause:
                time.sleep(self.pause)
            if failure := self.fail(number, body):
                return failure
            if self.key and headers.get("authorization") != f"Bearer {self.key}":
                return 401, {}, sentence("This key is not known.")
            return 200, {}, self.change(number, self.answer(body))
        except RefusedError as error:
            status, content = error.args
            return status, {}, content
        finally:
            with self._lock:
                self.active -= 1
                self.answered += 1


class ChatServer(FakeService):
    """OpenAI's chat completions.

    `likely(body)` gives the tokens of the first place with their log-probabilities, the most likely
    one first.
    """

    model = "tiny"
    engine = "openai"
    base = "/v1"  # of the address that the user exports
    path = "/v1/chat/completions"

    def __init__(self):
        super().__init__()
        self.likely = None

    def list_models(self):
        models = [{"id": self.model, "object": "model", "created": 0, "owned_by": "tests"}]
        return 200, {}, {"object": "list", "data": models}

    def answer(self, body):
        *pictures, text = body["messages"][0]["content"]
        seen = [mean_colour(picture_of(part)) for part in pictures]
        words = f"{text['text']} {'/'.join(seen)}".split()
        cut = words[: body.get("max_tokens") or body["max_completion_tokens"]]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": " ".join(cut)},
            "finish_reason": "stop" if cut == words else "length",
        }
        if body.get("logprobs") and self.likely is not None:
            choice["logprobs"] = {"content": logprobs(self.likely(body))}
        usage = {"prompt_tokens": 1, "completion_tokens": len(cut)}
        usage["total_tokens"] = 1 + len(cut)
        reply = {"id": "x", "object": "chat.completion", "created": 0}
        return reply | {"model": body["model"], "choices": [choice], "usage": usage}


def logprobs(likely):
    """The log-probabilities of an answer of one token, or of none."""
    named = [{"token": token, "logprob": value, "bytes": None} for token, value in likely]
    return [{**named[0], "top_logprobs": named}] if named else []


class DecisionServer(FakeService):
    """A decision model, which refuses unknown fields."""

    model = "decider"
    engine = "decisions"
    base = ""
    path = "/v1/decisions"  # or /v1/systemone

    def list_models(self):
        return 404, {}, sentence("no list")

    def answer(self, body):
        refuse_unknown(body, {"model", "state", "questions"})
        if body["model"] != self.model:
            raise RefusedError(400, sentence(f"Model {body['model']} is unknown."))
        pictures = [picture_of(part) for part in body["state"]]
        n_tokens = 96 * len(pictures)
        answers = {}
        for name, question in body["questions"].items():
            refuse_unknown(question, {"type", "instructions", "criteria"})
            if question["type"] != "choice" or not 1 <= len(question["criteria"]) <= 255:
                raise RefusedError(400, sentence("A choice has 1 to 255 options."))
            chances = decide(pictures[0], question)
            best = max(chances, key=chances.get)
            answers[name] = {"type": "choice", "choice": best, "probabilities": chances}
            answers[name]["confidence"] = 0.5
            n_tokens += 92
        usage = {"input_tokens": n_tokens, "output_tokens": 0}
        return {"model": self.model, "answers": answers, "usage": usage}


def refuse_unknown(given, known):
    if unknown := set(given) - known:
        raise RefusedError(400, sentence(f"Unknown field {min(unknown)}."))


def picture_of(part):
    url = part["image_url"]["url"]
    if not url.startswith("data:image/"):
        raise RefusedError(400, sentence("Only data URLs are taken."))
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    if picture.format not in ("PNG", "JPEG", "WEBP"):
        raise RefusedError(
            400, sentence(f"{picture.format} is no format of pictures here.")
        )
    return picture


def decide(picture, question):
    """Probabilities that depend on the picture and the options, not on their order."""
    seen = sum(map(int, mean_colour(picture).split()))
    weights = {name: 1 + (seen + sum(name.encode())) % 97 for name in question["criteria"]}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, headers, content):
        """Send bytes as they are, and other content as JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        kind = "text/html" if data.startswith(b"<") else "application/json"
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        is_list = self.path == "/v1/models"
        self.send(*(self.service.list_models() if is_list else self.service.elsewhere))

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.service.reply(self.path, json.loads(content), headers)
        connection, self.wfile = self.wfile, io.BytesIO()
        self.send(*reply)
        content, self.wfile = self.wfile.getvalue(), connection
        step = 1 if self.service.drip else len(content)
        with contextlib.suppress(ConnectionError):  # who asked may be gone
            for start in range(0, len(content), step):
                connection.write(content[start : start + step])
                time.sleep(self.service.drip)


@contextlib.contextmanager
def serving(kind):
    """A running service of a class; its address is `url`."""
    service = kind()
    with listening(type("Handler", (_Handler,), {"service": service})) as url:
        service.url = url + kind.base
        yield service


def started(kind, monkeypatch):
    """The same, which the engine finds."""
    with serving(kind) as service:
        variable = service.engine.upper()
        monkeypatch.setenv(f"{variable}_BASE_URL", service.url)
        monkeypatch.setenv(f"{variable}_API_KEY", KEY)
        service.key = KEY
        engines = "latteclip.captions.engines"
        monkeypatch.setattr(f"{engines}.openai.RETRIES", 1)
        yield service


def answer_at_once(monkeypatch):
    """Let each request have its answer before the next one begins."""

    def answered(coroutine, loop, start=asyncio.run_coroutine_threadsafe):
        future = start(coroutine, loop)
        wait([future])
        return future

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", answered)


@pytest.fixture
def server(monkeypatch):
    yield from started(ChatServer, monkeypatch)


@pytest.fixture
def decisions(monkeypatch):
    yield from started(DecisionServer, monkeypatch)


@pytest.fixture(params=[ChatServer, DecisionServer], ids=["openai", "decisions"])
def service(request, monkeypatch):
    """A service of each protocol."""
    yield from started(request.param, monkeypatch)
