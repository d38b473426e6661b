import dataclasses

import pytest
import torch
from support.commands import PROMPT, SETTINGS, scores_of
from support.sections import changed
from support.tiny_lmms import qwen3_vl

from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.captions.questions import Choices, Request
from latteclip.data.images import open_rgb

TOLERANCE = 1e-3


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
        same = [
            all(ids[i : i + 1] == [own] for ids, _ in found) for i, own in enumerate(alone)
        ]
        start = same.index(False) if False in same else len(alone)
        return [
            sum(rows[i - 1, ids[i]].item() for i in range(start, len(ids)))
            for ids, rows in found
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


@pytest.fixture(scope="module")
def scorer():
    return TransformersEngine(SETTINGS, threads=1)


@pytest.fixture(scope="module")
def plain(scorer):
    return Plain(scorer)


def test_likelihoods_are_those_of_a_plain_forward_pass(scorer, plain, requests):
    for request, scores in zip(
        requests["likelihood"], scores_of(scorer, requests["likelihood"]), strict=True
    ):
        expected = plain.likelihoods(request)
        assert scores.log_probabilities[0] == pytest.approx(expected, abs=TOLERANCE)
        assert scores.first == ()


def test_letters_are_those_of_a_plain_forward_pass(scorer, plain, requests):
    some = requests["multiple_choice"][:12]
    for request, scores in zip(some, scores_of(scorer, some), strict=True):
        rows, first = plain.letters(request)
        assert len(scores.log_probabilities) == len(request.choices.prompts)
        for found, expected in zip(scores.log_probabilities, rows, strict=True):
            assert found == pytest.approx(expected, abs=TOLERANCE)
        assert scores.first == first


def test_the_end_of_a_prompt_that_a_choice_changes_is_left_to_the_choices(
    scorer, plain, textures, monkeypatch
):
    """ "dot" + "ted" is one token, and so is the "dot" that the prompt ends with."""
    choices = Choices("likelihood", ("ted lines", " a"))
    request = Request(0, [open_rgb(textures[0])], PROMPT, choices)
    prompt = plain.prompt(request) + " dot"
    monkeypatch.setattr(scorer._tokens, "prompts", lambda request: [prompt])
    split = scorer._tokens.split(prompt, choices.texts)
    assert split.start < len(split.prompt)
    [scores] = scores_of(scorer, [request])
    expected = plain.likelihoods(request, prompt)
    assert scores.log_probabilities[0] == pytest.approx(expected, abs=TOLERANCE)


def test_another_architecture_counts_its_positions_right(textures, tmp_path):
    """A picture of Qwen3-VL takes fewer positions than tokens."""
    settings = changed(SETTINGS, model=qwen3_vl(tmp_path / "qwen"))
    scorer = TransformersEngine(settings, threads=1)
    plain = Plain(scorer)
    asked = [
        Request(
            n, [open_rgb(textures[n])], prompt, Choices("likelihood", (" dot.", " dotted."))
        )
        for n, prompt in enumerate(("Describe.", "What?", "What is it, in one word?"))
    ]
    for request, scores in zip(asked, scores_of(scorer, asked), strict=True):
        bare = dataclasses.replace(
            request, choices=Choices("likelihood", ("dot.", "dotted."))
        )
        expected = plain.likelihoods(bare)  # its template ends in a line break
        assert scores.log_probabilities[0] == pytest.approx(expected, abs=TOLERANCE)
