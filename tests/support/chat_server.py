"""A small server that speaks OpenAI's chat completions on 127.0.0.1, and fails as it is told to."""

import base64
import io
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from PIL import Image
from support.captioning import mean_colour
from support.web import JsonHandler, listening

MODEL = "tiny"


class ChatServer:
    """Its requests, and how it replies.

    `fail(number, body)` may return (status, headers) for the request of that number, counted from
    0, in place of an answer, and as a third the bytes of the reply. `pause` seconds pass before
    each answer. `models` are the bytes of its list of models, if not its own. `likely(body)` gives
    the tokens of the first place with their log-probabilities, the most likely one first.
    """

    def __init__(self):
        self.requests, self.active, self.most_active = [], 0, 0
        self.fail = lambda number, body: None
        self.pause = 0.0
        self.models = None
        self.likely = None
        self.answered = 0
        self._lock = threading.Lock()

    def reply(self, body, headers):
        with self._lock:
            number = len(self.requests)
            self.requests.append(
                {"body": body, "headers": headers, "time": time.monotonic()}
            )
            self.active += 1
            self.most_active = max(self.active, self.most_active)
        try:
            time.sleep(self.pause)
            failure = self.fail(number, body)
            if failure is not None:
                return *failure, {"error": {"message": "told to fail"}}
            return 200, {}, self.completion(body)
        finally:
            with self._lock:
                self.active -= 1
                self.answered += 1

    def completion(self, body):
        *pictures, text = body["messages"][0]["content"]
        seen = [mean_colour(decoded(part["image_url"]["url"])) for part in pictures]
        words = f"{text['text']} {'/'.join(seen)}".split()
        cut = words[: body["max_tokens"]]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": " ".join(cut)},
            "finish_reason": "stop" if cut == words else "length",
        }
        if body.get("logprobs") and self.likely is not None:
            choice["logprobs"] = {"content": logprobs(self.likely(body))}
        usage = {
            "prompt_tokens": 1,
            "completion_tokens": len(cut),
            "total_tokens": 1 + len(cut),
        }
        return {
            **{
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
            },
            **{"choices": [choice], "usage": usage},
        }


def logprobs(likely):
    """The log-probabilities of an answer of one token, or of none."""
    named = [{"token": token, "logprob": value, "bytes": None} for token, value in likely]
    return [{**named[0], "top_logprobs": named}] if named else []


def decoded(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


class _Handler(JsonHandler, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "tests"}]
        self.send(200, {}, self.chat.models or {"object": "list", "data": models})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.send(*self.chat.reply(body, headers))


@contextmanager
def serving():
    """A running server; its address is `url`."""
    server = ChatServer()
    with listening(type("Handler", (_Handler,), {"chat": server})) as url:
        server.url = f"{url}/v1"
        yield server


@pytest.fixture
def server(monkeypatch):
    """A running server that the engine finds, without a key."""
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        yield server
