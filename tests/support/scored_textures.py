"""Requests for scores about textures, and the plain way to their answers with the demo's LLaVA."""

import pytest
import torch
from support.commands import PROMPT

from latteclip.captions.engines.base import Scores
from latteclip.captions.requests import Choices, Request
from latteclip.captions.score_classes import letters_of, letters_prompt
from latteclip.data.images import open_rgb
from latteclip.demo.generate_textures import TextureSettings, generate_textures

N = 50
ANSWER = " a {} texture with"
NAMES = ["banded", "bubbly", "dotted", "grid", "marbled", "woven"]


@pytest.fixture(scope="session")
def textures(tmp_path_factory):
    """Paths of N of the demo's textures."""
    folder = tmp_path_factory.mktemp("scored")
    generate_textures(TextureSettings(N, 1, 0.85, seed=0), folder / "data")
    return sorted(map(str, (folder / "data").rglob("*.png")))[:N]


def options_of(number):
    """Five classes, others for other pictures."""
    return [NAMES[(number + i) % len(NAMES)] for i in range(5)]


def request(kind, number, path):
    """What is asked about the picture of a number."""
    names = options_of(number)
    if kind == "likelihood":
        choices = Choices(kind, tuple(ANSWER.format(name) for name in names))
        return Request(number, [open_rgb(path)], PROMPT, choices)
    shown = names[: 2 + number % 4]  # prompts of several lengths
    orders = [shown, shown[::-1], [*shown[1:], shown[0]]][: 1 + number % 3]
    prompts = tuple(map(letters_prompt, orders))
    choices = Choices(kind, letters_of(len(shown)), prompts)
    return Request(number, [open_rgb(path)], prompts[0], choices)


@pytest.fixture(scope="session")
def requests(textures):
    """Requests of both kinds about the N textures, by kind."""
    return {
        kind: [request(kind, number, path) for number, path in enumerate(textures)]
        for kind in ("likelihood", "multiple_choice")
    }


def scores_of(scorer, requests):
    """The scores that a scorer gives, in the order of the requests."""
    answers = {request.key: answer for request, answer in scorer.answer(iter(requests))}
    return [Scores.parse(answers[request.key].text) for request in requests]


class Plain:
    """One text at a time through the whole model: no cache and no batch."""

    def __init__(self, scorer):
        self.processor, self.model = scorer._processor, scorer._model

    def prompt(self, request, text=None):
        content = [{"type": "image"}, {"type": "text", "text": text or request.prompt}]
        turns = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(turns, add_generation_prompt=True)

    def rows(self, request, text):
        """Token ids [L], and log-probabilities [L, V] of the token after each."""
        inputs = self.processor(images=[request.pictures], text=[text], return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(**inputs, use_cache=False).logits[0]
        return inputs["input_ids"][0].tolist(), logits.float().log_softmax(-1)

    def likelihoods(self, request, prompt=None):
        """Sums over the tokens from where the choices' texts part from the prompt's."""
        prompt = prompt or self.prompt(request)
        alone, _ = self.rows(request, prompt)
        found = [self.rows(request, prompt + text) for text in request.choices.texts]
        start = 0
        while all(ids[: start + 1] == alone[: start + 1] for ids, _ in found) and start < len(
            alone
        ):
            start += 1
        return [
            sum(rows[i - 1, ids[i]].item() for i in range(start, len(ids))) for ids, rows in found
        ]

    def letters(self, request):
        """Of each letter, alone and after a space, in each order; the likeliest tokens."""
        tokenizer = self.processor.tokenizer
        texts = [tokenizer.decode([number]) for number in range(len(tokenizer))]
        places = [
            [i for i, text in enumerate(texts) if text in (letter, f" {letter}")]
            for letter in request.choices.texts
        ]
        asked = [self.prompt(request, prompt) for prompt in request.choices.prompts]
        ends = [self.rows(request, prompt)[1][-1] for prompt in asked]
        rows = [[end[ids].logsumexp(0).item() for ids in places] for end in ends]
        return rows, tuple(texts[end.argmax()] for end in ends)
