import dataclasses
import math

import pytest
from support.commands import PROMPT, SETTINGS
from support.scored_textures import Plain, scores_of
from support.tiny_lmms import qwen2_vl

from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.captions.requests import Choices, Request
from latteclip.data.images import open_rgb

TOLERANCE = 1e-3


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


def test_a_name_that_begins_another_is_scored_without_it(scorer, plain, textures):
    texts = (" dot", " dotted", " dot grid")
    request = Request(0, [open_rgb(textures[0])], PROMPT, Choices("likelihood", texts))
    tails = scorer._tokens.split(plain.prompt(request), texts).tails
    assert tails[2][: len(tails[0])] == tails[0]
    [scores] = scores_of(scorer, [request])
    dot, dotted, grid = plain.likelihoods(request)
    inside = [grid, *([dotted] if tails[1][: len(tails[0])] == tails[0] else [])]
    rest = math.exp(dot) - sum(map(math.exp, inside))
    assert scores.log_probabilities[0][0] == pytest.approx(math.log(rest), abs=TOLERANCE)
    assert scores.log_probabilities[0][1:] == pytest.approx([dotted, grid], abs=TOLERANCE)


def test_another_architecture_counts_its_positions_right(textures, tmp_path):
    """A picture of Qwen2-VL takes fewer positions than tokens."""
    settings = dataclasses.replace(SETTINGS, model=qwen2_vl(tmp_path / "qwen"))
    scorer = TransformersEngine(settings, threads=1)
    plain = Plain(scorer)
    asked = [
        Request(n, [open_rgb(textures[n])], prompt, Choices("likelihood", (" dot.", " dotted.")))
        for n, prompt in enumerate(("Describe.", "What?", "What is it, in one word?"))
    ]
    for request, scores in zip(asked, scores_of(scorer, asked), strict=True):
        bare = dataclasses.replace(request, choices=Choices("likelihood", ("dot.", "dotted.")))
        expected = plain.likelihoods(bare)  # its template ends in a line break
        assert scores.log_probabilities[0] == pytest.approx(expected, abs=TOLERANCE)
