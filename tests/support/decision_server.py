"""A small server that speaks the protocol of decision models on 127.0.0.1, with its faults.

It has one of the two paths, takes data URLs of PNG, JPEG and WebP, refuses unknown fields with
400 and a sentence, and fails with an HTML 504 where a picture has more than 2,048 tiles.
"""

import base64
import io
import json
import math
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from PIL import Image
from support.captioning import mean_colour
from support.web import JsonHandler, listening

MODEL = "decider"
KEY = "key-0123456789"
PRICE = 0.04  # of a million input tokens
MAX_BODY = 2**20  # bytes
HTML = b"<html><body>504 Gateway Time-out</body></html>"
FIELDS = {"model", "state", "questions"}
OF_QUESTION = {"type", "instructions", "criteria"}


class RefusedError(Exception):
    """A status and a sentence."""


class DecisionServer:
    """Its requests, and how it replies.

    `fail(number, body)` may return (status, headers, content) for the request of that number,
    counted from 0. `decide(picture, question)` gives the probabilities of the options. `change` may
    change a reply before it is sent. `pause` seconds pass before each answer.
    """

    def __init__(self):
        self.path = "/v1/decisions"
        self.key = None  # that it wants
        self.costs = True  # whether it names the cost
        self.fail = lambda number, body: None
        self.change = lambda number, reply: reply
        self.decide = decide
        self.pause = 0.0
        self.requests, self.active, self.most_active = [], 0, 0
        self.answered = 0
        self.lock = threading.Lock()

    def reply(self, path, body, headers):
        if path != self.path:
            return 404, {}, {"error": {"message": "no such path"}}
        with self.lock:
            number = len(self.requests)
            self.requests.append(
                {"body": body, "headers": headers, "time": time.monotonic()}
            )
            self.active += 1
            self.most_active = max(self.active, self.most_active)
        try:
            time.sleep(self.pause)
            if failure := self.fail(number, body):
                return failure
            if self.key and headers.get("authorization") != f"Bearer {self.key}":
                return 401, {}, {"error": {"message": "wrong key"}}
            return 200, {}, self.change(number, self.answer(body))
        except RefusedError as error:
            status, content = error.args
            return status, {}, content
        finally:
            with self.lock:
                self.active -= 1
                self.answered += 1

    def answer(self, body):
        refuse_unknown(body, FIELDS)
        if body["model"] != MODEL:
            raise RefusedError(400, sentence(f"Model {body['model']} is unknown."))
        pictures = [picture_of(part) for part in body["state"]]
        n_tokens = 0
        for picture in pictures:
            n_tiles = math.prod(math.ceil(side / 32) for side in picture.size)
            if n_tiles > 2048:
                raise RefusedError(504, HTML)
            n_tokens += n_tiles + 95
        answers = {}
        for name, question in body["questions"].items():
            refuse_unknown(question, OF_QUESTION)
            options = list(question["criteria"])
            if question["type"] != "choice" or not 1 <= len(options) <= 255:
                raise RefusedError(400, sentence("A choice has 1 to 255 options."))
            chances = self.decide(pictures[0], question)
            best = max(chances, key=chances.get)
            answers[name] = {
                "type": "choice",
                "choice": best,
                "probabilities": chances,
                "confidence": 0.5,
            }
            n_tokens += 92
        usage = {"input_tokens": n_tokens, "output_tokens": 0}
        if self.costs:
            usage["cost"] = n_tokens * PRICE / 1e6
        return {"model": MODEL, "answers": answers, "usage": usage}


def refuse_unknown(given, known):
    if unknown := set(given) - known:
        raise RefusedError(400, sentence(f"Unknown field {min(unknown)}."))


def sentence(text):
    return {"error": {"message": text, "type": "invalid_request_error"}}


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
    options = question["criteria"]
    seen = sum(map(int, mean_colour(picture).split()))
    weights = {name: 1 + (seen + sum(name.encode())) % 97 for name in options}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


class _Handler(JsonHandler, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send(404, {}, {"error": {"message": "no list"}})

    def do_POST(self):
        size = int(self.headers["Content-Length"])
        content = self.rfile.read(size)
        if size > MAX_BODY:
            self.send(413, {}, sentence("The request is too large."))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.send(*self.server_of.reply(self.path, json.loads(content), headers))


@contextmanager
def serving():
    """A running server; its address is `url`."""
    server = DecisionServer()
    with listening(type("Handler", (_Handler,), {"server_of": server})) as url:
        server.url = url
        yield server


@pytest.fixture
def decisions(monkeypatch):
    """A running server that the engine finds, with its key."""
    with serving() as server:
        monkeypatch.setenv("DECISIONS_BASE_URL", server.url)
        monkeypatch.setenv("DECISIONS_API_KEY", KEY)
        server.key = KEY
        yield server
