"""Class scores by a decision model: what is asked, which images, and what is stored."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from support.captioning import DECISIONS, N, ScoredDataset, provenance
from support.servers import DecisionServer, decide

ENGINE = {"engine": "decisions", "model": DecisionServer.model, "batch_size": 4}
NONE = "none of these"


def decisions_of(scored, **changes):
    return scored.score(DECISIONS, **{**ENGINE, **changes})


def asked(columns):
    """The rows with scores."""
    return [row for row, options in enumerate(columns["options"]) if options]


def test_all_classes_are_options_with_their_texts(scored, decisions):
    columns = decisions_of(scored)
    assert columns["error"] == [None] * N
    assert [len(options) for options in columns["options"]] == [25] * N
    question = next(iter(decisions.requests[0]["body"]["questions"].values()))
    assert len(question["criteria"]) == 26
    assert question["criteria"]["class 3"] == "a photo of a class 3."
    assert question["criteria"]["class 1"] == "a photo of a class 1 or first class."
    assert question["criteria"][NONE] is None
    for row, options in enumerate(columns["options"]):
        names = [scored.classnames[c] for c in options]
        chances = decide(Image.open(scored.files[row]), {"criteria": [*names, NONE]})
        logs = [math.log(chances[name]) for name in [*names, NONE]]
        assert columns["log_probabilities"][row] == pytest.approx(logs[:-1], abs=1e-4)


@pytest.mark.parametrize(("n_classes", "k"), [(254, 254), (255, 5)])
def test_of_many_classes_the_best_by_clip_are_options(tmp_path, decisions, n_classes, k):
    scored = ScoredDataset(tmp_path, n_classes)
    best = np.argsort(-scored.cosines, axis=1, kind="stable")[:, :k]
    assert decisions_of(scored)["options"] == best.tolist()


def test_requests_and_tokens_are_counted_also_where_answers_are_cached(scored, decisions):
    for _ in range(2):
        decisions_of(scored, max_images=4)
        found = provenance(scored.output)
        assert (found.questions, found.not_asked, found.tokens_written) == (4, N - 4, 0)
        assert found.tokens_read > 4 * 92
        assert f"4 questions to decider, {found.tokens_read:,} tokens" in found.in_words
    assert len(decisions.requests) == 4


# --- which images --------------------------------------------------------------------------------


def by_margin(scored):
    """The rows by the margin of the adapted classifier, the smallest one first."""
    scores = np.sort(scored.features[1 : 1 + N] @ scored.adapted_weights.T, axis=1)
    return np.argsort(scores[:, -1] - scores[:, -2], kind="stable").tolist()


def answer_by_a_person(scored, *rows, kind="class"):
    """The file of a person's answers about some rows."""
    answers = []
    for row in rows:
        answer = {"image": scored.names[row], "answer": kind}
        answers.append(answer | ({"class": "class 0"} if kind == "class" else {}))
    path = scored.folder / "answers.json"
    path.write_text(json.dumps({"plan": "teach", "answers": answers}))
    return str(path)


def test_the_least_certain_images_are_asked_about_first(scored, decisions):
    order = by_margin(scored)
    for n in (3, 5, N, 99):
        assert asked(decisions_of(scored, max_images=n)) == sorted(order[:n])
        assert len(decisions.requests) == min(n, N)


def test_an_image_that_a_person_answered_is_never_asked_about(scored, decisions):
    first, second, *others = by_margin(scored)
    answers = answer_by_a_person(scored, first)
    columns = decisions_of(scored, max_images=2, answers=answers)
    assert asked(columns) == sorted([second, others[0]])
    # An answer after the question leaves the model's answer in the table.
    answers = answer_by_a_person(scored, first, second)
    columns = decisions_of(scored, max_images=2, answers=answers)
    assert asked(columns) == sorted([second, *others[:2]])
    assert len(decisions.requests) == 3
    # A person who cannot tell has not answered.
    answers = answer_by_a_person(scored, first, kind="unsure")
    assert first in asked(decisions_of(scored, max_images=2, answers=answers))
