"""One sure image of each likely class beside the question: which, and that nothing else changes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.captioning import SETTINGS, mean_colour, of_engine
from support.commands import SETTINGS as DEMO
from support.scoring import DECISIONS, LETTERS, LIKELIHOOD, N, ScoredDataset, answered
from support.servers import (
    ChatServer,
    DecisionServer,
    picture_of,
    server,  # noqa: F401
)

from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.captions.example_images import MAX_EXAMPLES, SureImages
from latteclip.captions.metadata import ScoresMetadata
from latteclip.captions.pictures import read_image
from latteclip.captions.requests import Choices, ChoiceScores, Identity, Request, digest
from latteclip.captions.score_classes import letters_of, letters_prompt, order_of
from latteclip.core import tables
from latteclip.data.images import open_rgb
from latteclip.data.index_images import checksum

K = 3  # likely classes of an image


@pytest.fixture
def seen(recorder):
    """A recorder that answers about any number of pictures."""

    def answer(request):
        if request.choices.kind == "likelihood":
            return answered([-1.0] * len(request.choices.texts))
        rows = [[-1.0] * len(request.choices.texts) for _ in request.choices.prompts]
        return answered(*rows, first=[request.choices.texts[0]] * len(rows))

    recorder.reply = answer
    return recorder


def sure_of(scored):
    """The rows of the images of each class, the clearest by the adapted classifier first."""
    scores = scored.features[1 : 1 + N] @ scored.adapted_weights.T
    ordered = np.sort(scores, axis=1)
    lead = ordered[:, -1] - ordered[:, -2]
    found = {}
    for row in sorted(range(N), key=lambda row: -lead[row]):
        found.setdefault(int(scores[row].argmax()), []).append(row)
    return found


def expected(scored, row):
    """The examples beside an image, and the number of the class of each."""
    best = np.argsort(-scored.cosines[row], kind="stable")[:K]
    sure = sure_of(scored)
    pairs = []
    for label in best.tolist():
        others = [one for one in sure.get(label, []) if one != row]
        if others:
            pairs.append((others[0], label))
    return pairs


@pytest.mark.parametrize("settings", [LIKELIHOOD, LETTERS], ids=["likelihood", "letters"])
def test_the_clearest_image_of_each_likely_class_stands_before_the_picture(
    tmp_path, seen, settings
):
    scored = ScoredDataset(tmp_path, 4)
    scored.score(settings, examples=1)
    n_examples = 0
    for request in seen.requests:
        pairs = expected(scored, request.key)[:K]
        rows = [*(row for row, _ in pairs), request.key]
        colours = [mean_colour(Image.open(scored.files[row])) for row in rows]
        assert [*map(mean_colour, request.pictures)] == colours
        prompt = (request.choices.prompts or [request.prompt])[0]
        for number, (_, label) in enumerate(pairs, start=1):
            name = scored.classnames[label]
            assert f"Photo {number}: a photo of a {name}" in prompt
        assert ("last photo" in prompt) == bool(pairs)
        n_examples += len(pairs)
    assert n_examples > N
    assert seen.pictures == 1 + K
    metadata = tables.read_metadata(scored.output, ScoresMetadata)
    assert metadata.examples == 1


def test_no_image_is_its_own_example_and_a_class_without_images_has_none():
    labels = np.array([0, 0, 1])
    sure = SureImages.by_margin(labels, np.array([0.5, 0.9, 0.1]))
    assert sure.beside(2, [0, 1, 2]) == [(1, 0)]
    assert sure.beside(1, [0, 1, 2]) == [(0, 0), (2, 1)]
    many = SureImages.by_margin(np.arange(20), np.ones(20))
    assert len(many.beside(0, range(20))) in (MAX_EXAMPLES, MAX_EXAMPLES - 1)


def test_without_the_key_requests_and_their_digests_are_those_of_before(scored, seen):
    columns = scored.score(LETTERS)
    names = scored.classnames
    layout = SETTINGS.picture_layout
    identity = Identity(SETTINGS.model, "abc", "float32", None, 0, layout)
    for row, options in enumerate(columns["options"]):
        listed = [names[c] for c in options]
        content = checksum(Path(scored.files[row]).read_bytes()).hex()
        orders = [order_of(content, number, listed) for number in range(2)]
        prompts = tuple(letters_prompt([listed[i] for i in order]) for order in orders)
        choices = Choices("multiple_choice", letters_of(K), prompts)
        contents = [read_image(scored.files[row])]
        found = {
            digest(contents, prompts[0], rule, choices)
            for rule in (identity, special(identity))
        }
        assert columns["digest"][row] in found
    n = len(seen.requests)
    scored.score(LETTERS, examples=0)
    assert len(seen.requests) == n
    other = scored.score(LETTERS, examples=1)
    assert other["digest"] != columns["digest"]


def special(identity):
    """The identity of a model whose tokenizer adds special tokens."""
    values = vars(identity) | {"special_tokens": "added unless the prompt begins with them"}
    return Identity(**values)


def test_the_examples_are_the_same_again(scored, seen):
    before = scored.score(LETTERS, examples=1)
    n = len(seen.requests)
    assert scored.score(LETTERS, examples=1) == before
    assert len(seen.requests) == n


def test_a_decision_model_gets_at_most_eight_pictures_in_its_state(tmp_path, decisions):
    scored = ScoredDataset(tmp_path, 30)
    engine = {
        **of_engine("decisions"),
        "model": DecisionServer.model,
        "requests_per_second": 1000,
    }
    scored.score(DECISIONS, examples=1, topk=9, max_image_side=16, **engine)
    assert len(decisions.requests) == N
    most = 0
    for sent in decisions.requests:
        state = sent["body"]["state"]
        assert all(max(picture_of(part).size) <= 16 for part in state)
        [*_, last] = sent["body"]["questions"].values()
        assert last["instructions"].count("Photo ") == len(state) - 1
        most = max(most, len(state))
    assert 1 < most <= MAX_EXAMPLES + 1


def test_a_chat_server_gets_the_pictures_in_their_order(scored, server):  # noqa: F811
    server.likely = lambda body: [("A", -0.1), ("B", -3.0)]
    scored.score(LETTERS, examples=1, engine="openai", model=ChatServer.model)
    shown = [sent["body"]["messages"][0]["content"] for sent in server.requests]
    assert max(len(content) for content in shown) > 2
    for *pictures, text in shown:
        assert text["text"].count("Photo ") == len(pictures) - 1
        assert all(part["type"] == "image_url" for part in pictures)


def test_a_model_that_runs_here_reads_the_pictures_and_scores_change(tmp_path):
    files = []
    for number in range(2):
        path = tmp_path / f"{number}.png"
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
        files.append(str(path))
    pictures = [open_rgb(file) for file in files]
    engine = TransformersEngine(DEMO, 1)
    choices = Choices("likelihood", (" dots.", " lines."))
    requests = [
        Request(number, shown, "What is the last photo?", choices)
        for number, shown in enumerate([pictures[1:], pictures, pictures[::-1]])
    ]
    answers = {request.key: answer for request, answer in engine.answer(requests)}
    values = [ChoiceScores.parse(answers[n].text).log_probabilities for n in range(3)]
    assert len({json.dumps(value) for value in values}) == 3
