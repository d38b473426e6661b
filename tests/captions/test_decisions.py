"""Class scores by a decision model: what is asked, what is stored, and what a run is refused."""

import json
import logging
import math
import subprocess
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support import warm
from support.captioning import SETTINGS, of_engine
from support.scoring import DECISIONS, N, ScoredDataset, reply
from support.sections import changed
from support.servers import DecisionServer, decide, sentence
from support.tiny import write_expected_gains

from latteclip.captions.answer_cache import AnswerCache
from latteclip.captions.budget import Budget
from latteclip.captions.metadata import Rest, ScoresMetadata
from latteclip.captions.score_classes import mean_decision
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.metadata import GainsMetadata, IndexMetadata

ENGINE = {
    **of_engine("decisions"),
    "model": DecisionServer.model,
    "concurrency": 4,
    "retries": 0,
    "requests_per_second": 1000,
}
NONE = "none of these"
TOKENS = 280  # of each answer
COST = TOKENS * 0.04e-6


@pytest.fixture(autouse=True)
def equal_costs(decisions):
    """A server that asks the same for each picture."""

    def change(number, reply):
        usage = {"input_tokens": TOKENS, "output_tokens": 0}
        return reply | {"usage": usage | ({"cost": COST} if decisions.costs else {})}

    decisions.change = change


def decisions_of(scored, **changes):
    return scored.score(DECISIONS, **{**ENGINE, **changes})


def metadata(scored):
    return tables.read_metadata(scored.output, ScoresMetadata)


def first_question(decisions):
    return next(iter(decisions.requests[0]["body"]["questions"].values()))


# --- what is asked and stored --------------------------------------------------------------------


def test_all_classes_are_options_with_their_texts(scored, decisions):
    columns = decisions_of(scored)
    assert columns["error"] == [None] * N
    assert [len(options) for options in columns["options"]] == [25] * N
    question = first_question(decisions)
    assert len(question["criteria"]) == 26
    assert question["criteria"]["class 3"] == "a photo of a class 3."
    assert question["criteria"]["class 1"] == "a photo of a class 1 or first class."
    assert question["criteria"][NONE] is None
    for row, options in enumerate(columns["options"]):
        names = [scored.classnames[c] for c in options]
        chances = decide(Image.open(scored.files[row]), {"criteria": [*names, NONE]})
        logs = [math.log(chances[name]) for name in [*names, NONE]]
        assert columns["log_probabilities"][row] == pytest.approx(logs[:-1], abs=1e-4)
        assert columns["none"][row] == pytest.approx(logs[-1], abs=1e-4)


def test_without_that_option_only_classes_are_asked_for(scored, decisions):
    columns = decisions_of(scored, none_option=False)
    question = first_question(decisions)
    assert len(question["criteria"]) == 25 and NONE not in question["criteria"]
    assert columns["none"] == [None] * N
    for values in columns["log_probabilities"]:
        assert np.exp(values).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("n_classes", "k"), [(254, 254), (255, 3)])
def test_of_many_classes_the_best_by_clip_are_options(tmp_path, decisions, n_classes, k):
    scored = ScoredDataset(tmp_path, n_classes)
    options = decisions_of(scored)["options"]
    best = np.argsort(-scored.cosines, axis=1, kind="stable")[:, :k]
    assert options == best.tolist()


@pytest.mark.parametrize(("name", "topk"), [(NONE, 3), ("class 0", 255)])
def test_a_class_named_none_and_too_many_options_are_refused(
    tmp_path, decisions, name, topk
):
    scored = ScoredDataset(tmp_path, 300, first=name)
    with pytest.raises(UserError, match=r"scores\.kind decisions"):
        decisions_of(scored, topk=topk)


def test_an_option_without_probability_in_one_order_keeps_that_of_the_other():
    zero = -math.inf
    found = mean_decision(
        [[zero, math.log(0.9), math.log(0.1)], [math.log(0.8), math.log(0.2), zero]],
        [[0, 1], [1, 0]],
        has_none=True,
    )
    assert np.exp(found) == pytest.approx([0.1, 0.85, 0.05])


def test_tokens_and_money_are_stored_with_each_answer_and_the_table(scored, decisions):
    columns = decisions_of(scored)
    with AnswerCache(scored.folder / "store") as cache:
        answers = [cache.get(digest) for digest in columns["digest"]]
    assert [answer.cost for answer in answers] == pytest.approx([COST] * N)
    assert metadata(scored).cost == pytest.approx(N * COST)
    decisions_of(scored)
    assert len(decisions.requests) == N  # nothing is asked twice
    assert metadata(scored).cost == pytest.approx(N * COST)


# --- a budget ------------------------------------------------------------------------------------


def asked(columns):
    return [bool(options) for options in columns["options"]]


@pytest.mark.parametrize(
    ("max_cost", "n"),
    [(3.5 * COST, 3), (4.0001 * COST, 4), (f"{5 * TOKENS // 2} tokens", 2), (1.0, N)],
)
def test_nothing_is_asked_beyond_the_budget(scored, decisions, caplog, max_cost, n):
    decisions.pause = 0.02
    with caplog.at_level(logging.INFO):
        columns = decisions_of(scored, max_cost=max_cost)
    assert sum(asked(columns)) == len(decisions.requests) == n
    assert metadata(scored).beyond_budget == N - n
    if n == N:
        return
    assert f"{N - n} images were not asked about" in caplog.text
    # The least certain images come first.
    ordered = np.sort(scored.cosines, axis=1)
    first = np.argsort(ordered[:, -1] - ordered[:, -2], kind="stable")[:n]
    assert np.flatnonzero(asked(columns)).tolist() == sorted(first)


def test_answers_of_earlier_runs_count_and_are_used(scored, decisions):
    decisions_of(scored, max_cost=3.5 * COST)
    decisions_of(scored, max_cost=3.5 * COST)
    assert len(decisions.requests) == 3
    columns = decisions_of(scored, max_cost=5.5 * COST)
    assert len(decisions.requests) == sum(asked(columns)) == 5
    columns = decisions_of(scored, max_cost=COST)  # less than was spent
    assert len(decisions.requests) == sum(asked(columns)) == 5


def test_renamed_images_are_not_paid_for_again(scored, decisions):
    decisions_of(scored)
    n = len(decisions.requests)
    metadata = IndexMetadata(scored.classnames)
    moved = {
        scored.inputs[0]: (tables.IMAGES, metadata),
        scored.inputs[1]: (tables.PSEUDO_LABELS, None),
    }
    for path, (schema, described) in moved.items():
        columns = tables.read(path, schema).to_pydict()
        columns["image_id"] = [f"moved/{number}.png" for number in range(N + 2)]
        tables.write(path, columns, schema, described)
    columns = decisions_of(scored)
    assert all(asked(columns)) and columns["image_id"][0].startswith("moved/")
    assert len(decisions.requests) == n


def test_the_images_of_the_largest_gain_come_first(scored, decisions, caplog):
    gains = write_expected_gains(
        scored.folder / "gains.parquet", scored.names, [0, 0.3, 0.1, 0, 0.4, 0, 0.2]
    )
    with caplog.at_level(logging.INFO):
        columns = decisions_of(scored, choose="gain", gains=gains, max_cost=2.5 * COST)
    assert np.flatnonzero(asked(columns)).tolist() == [1, 4]
    assert metadata(scored).rest == Rest(5, pytest.approx(0.3), "max_cost")
    assert "expected to change 0.3 labels" in caplog.text
    columns = decisions_of(scored, choose="gain", gains=gains)
    assert np.flatnonzero(asked(columns)).tolist() == [1, 2, 4, 6]  # a gain of 0 is none
    columns = decisions_of(scored, choose="gain", gains=gains, share=0.4)
    assert np.flatnonzero(asked(columns)).tolist() == [1, 4, 6]
    assert metadata(scored).rest.reason == "share"


def test_it_is_said_that_little_is_gained(scored, decisions, caplog):
    enough = GainsMetadata(answered=3, changed=1, expected=0.2, is_enough=True)
    gains = [0, 0, 0.3, 0, 0.4, 0, 0]
    path = scored.folder / "gains.parquet"
    with caplog.at_level(logging.INFO):
        decisions_of(
            scored,
            choose="gain",
            gains=write_expected_gains(path, scored.names, gains, enough),
        )
    assert metadata(scored).rest == Rest(5, 0.0, "min_gain")
    assert "scores.min_gain" in caplog.text


def test_prices_stand_in_for_a_server_that_names_no_cost(scored, decisions):
    decisions.costs = False
    with pytest.raises(UserError, match=r"captioner\.price_input"):
        decisions_of(scored, max_cost=3.5 * COST)
    assert len(decisions.requests) == 1
    columns = decisions_of(scored, max_cost=3.5 * COST, price_input=0.04)
    assert len(decisions.requests) == sum(asked(columns)) == 3
    assert metadata(scored).cost == pytest.approx(3 * COST)


def test_a_budget_of_seconds_ends_when_they_are_over():
    budget = Budget.of("600 seconds", 1, "scores.max_cost")
    budget.start()
    assert budget.is_informed and budget.has_room(under_way=99)
    budget.started -= 601
    assert not budget.has_room(under_way=0)


def test_a_budget_holds_for_any_engine(scored, scorer):
    scorer.reply = lambda request: replace(reply(request), n_read=100)
    columns = scored.score(max_cost="310 tokens")
    assert sum(asked(columns)) == len(scorer.requests) == 3  # 103 tokens each


def test_shards_divide_the_budget(scored, decisions):
    for number in (1, 2):
        output = scored.folder / f"{number}.parquet"
        decisions_of(scored, max_cost=4.4 * COST, shard=f"{number}/2", output=output)
    assert 2 <= len(decisions.requests) <= 4


# --- a service that ends -------------------------------------------------------------------------


def test_what_was_paid_for_outlives_the_end_of_the_credit(scored, decisions):
    no_credit = (402, {}, sentence("Top up."))
    decisions.fail = lambda number, body: no_credit if number >= 3 else None
    with pytest.raises(UserError, match="Top up"):
        decisions_of(scored, concurrency=1)
    assert not scored.output.exists()
    n = len(decisions.requests)
    decisions.fail = lambda number, body: None
    assert all(asked(decisions_of(scored)))
    assert len(decisions.requests) == n + N - 3


@pytest.mark.slow
def test_a_killed_run_goes_on_without_asking_twice_what_was_answered(scored, decisions):
    images, labels, embeddings = scored.inputs
    settings = changed(SETTINGS, **{**ENGINE, "concurrency": 1})
    command = [
        *(warm.command("latteclip"), "score-classes", "--images", images),
        *("--pseudo-labels", labels, "--class-embeddings", embeddings, "--prompt", ""),
        *("--scores", json.dumps({"kind": "decisions", "max_cost": 1.0})),
        *("--captioner", json.dumps(settings.model_dump()), "--threads", "1"),
        *("--output", str(scored.output), "--store", str(scored.folder / "store")),
    ]
    arrived = threading.Event()

    def hold(number, body):
        if number == 3:  # three answers were taken
            arrived.set()
            time.sleep(1)

    decisions.fail = hold
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert arrived.wait(120)
        process.kill()
        process.communicate()
    assert not scored.output.exists()
    subprocess.run(command, check=True)
    assert len(decisions.requests) == N + 1
    pictures = [json.dumps(sent["body"]["state"]) for sent in decisions.requests]
    assert pictures.count(pictures[3]) == 2  # the one that was under way


def test_a_service_that_is_down_is_given_up_with_a_sentence(scored, decisions, monkeypatch):
    monkeypatch.setattr("latteclip.captions.runner.MAX_CONSECUTIVE_FAILURES", 4)
    decisions.fail = lambda number, body: (503, {}, {}) if number >= 2 else None
    with pytest.raises(UserError, match=r"4 requests failed.*HTTP 503.*cached"):
        decisions_of(scored, concurrency=1)
    decisions.fail = lambda number, body: None
    assert all(asked(decisions_of(scored)))
    assert len(decisions.requests) == 2 + 4 + N - 2


def test_a_refused_picture_leaves_its_image_without_a_vote(scored, decisions):
    refusal = (400, {}, sentence("No such picture."))
    decisions.fail = lambda number, body: refusal if number == 2 else None
    columns = decisions_of(scored, concurrency=1, max_failed=0.2)
    [error] = filter(None, columns["error"])
    assert "No such picture" in error and json.dumps(columns).count("[]") == 2
