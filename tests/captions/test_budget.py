"""A budget of captions: what is asked within it, and what images beyond it have."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from support.captioning import CLASSNAMES, describe, provenance

from latteclip.captions.budget import Budget
from latteclip.captions.caption import gather_captions
from latteclip.captions.metadata import CaptionsMetadata
from latteclip.captions.requests import Response
from latteclip.captions.show import captions as show_captions
from latteclip.captions.summarize_captions import summarize_captions
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import read_object

N = 7  # images of the dataset
TOKENS = 100 + 7  # of an answer, read and written


@pytest.fixture(autouse=True)
def counted(recorder):
    """An engine that says how many tokens it reads."""
    recorder.reply = lambda request: replace(describe(request), n_read=100)


def asked(columns):
    return [bool(attempts) for attempts in columns["attempts"]]


def test_captions_end_with_the_budget_and_the_others_are_silent(dataset, recorder, caplog):
    with caplog.at_level(logging.INFO):
        columns = dataset.caption_images(max_cost=f"{3 * TOKENS + 50} tokens", max_failed=0)
    assert len(recorder.requests) == sum(asked(columns)) == 3
    for caption, error, reason, is_asked in zip(
        *(columns[name] for name in ("caption", "error", "finish_reason")),
        asked(columns),
        strict=True,
    ):
        assert bool(caption) == is_asked and error is None
        assert (reason == "not asked") == (not is_asked)
    assert provenance(dataset.output).beyond_budget == N - 3
    assert f"{N - 3} images were not asked about" in caplog.text
    assert "captioner.max_cost" in caplog.text
    summary = dataset.folder / "summary.json"
    summarize_captions([str(dataset.output)], dataset.images, str(summary))
    [found] = read_object(summary, []).values()
    assert (found["not_asked"], found["empty"], found["failed"]) == (N - 3, 0, 0)
    assert "beyond captioner.max_cost" in show_captions("show", str(dataset.output), n=N)


def test_what_was_paid_for_is_kept_and_counts(dataset, recorder):
    first = dataset.caption_images(max_cost=f"{3 * TOKENS} tokens")
    again = dataset.caption_images(max_cost=f"{3 * TOKENS} tokens")
    assert len(recorder.requests) == 3 and again == first
    more = dataset.caption_images(max_cost=f"{5 * TOKENS} tokens")
    assert len(recorder.requests) == 5
    assert all(now for now, before in zip(asked(more), asked(first), strict=True) if before)
    assert all(asked(dataset.caption_images()))
    assert len(recorder.requests) == N


def test_images_of_all_classes_come_first(tmp_path, dataset, recorder):
    """In the order of the index, those of one class would come first."""
    columns = dataset.caption_images(max_cost=f"{4 * TOKENS} tokens")
    first = [row for row, is_asked in enumerate(asked(columns)) if is_asked]
    assert first != [0, 1, 2, 3]


def test_a_second_attempt_is_within_the_budget(dataset, recorder):
    recorder.reply = lambda request: Response("", "stop", 7, n_read=100)
    columns = dataset.caption_images(max_cost=f"{(N + 2) * TOKENS} tokens", max_failed=1.0)
    assert len(recorder.requests) == N + 2
    assert sorted(columns["attempts"]) == [1] * (N - 2) + [2] * 2
    dataset.caption_images(max_cost=f"{(N + 2) * TOKENS} tokens", max_failed=1.0)
    assert len(recorder.requests) == N + 2


def test_groups_have_a_budget_too(dataset, recorder):
    columns = dataset.caption_groups(max_cost=f"{2 * TOKENS} tokens")
    assert len(recorder.requests) == sum(asked(columns)) == 2
    assert {columns["pseudo_label"][row] for row in range(N)} <= {*range(len(CLASSNAMES))}


def test_shards_have_equal_parts_and_their_table_counts_what_is_beyond(dataset, recorder):
    shards = [dataset.folder / f"{number}.parquet" for number in (1, 2)]
    for number, output in enumerate(shards, start=1):
        dataset.caption_images(
            shard=f"{number}/2", output=output, max_cost=f"{4 * TOKENS} tokens"
        )
    assert len(recorder.requests) <= 4
    gather_captions(dataset.images, [str(path) for path in shards], str(dataset.output))
    found = tables.read_metadata(dataset.output, CaptionsMetadata)
    assert found.beyond_budget == N - len(recorder.requests)


def test_an_answer_for_equal_images_counts_once(dataset, recorder):
    twin = Path(dataset.files[5])
    twin.write_bytes(Path(dataset.files[1]).read_bytes())
    budget = f"{(N - 1) * TOKENS} tokens"
    first = dataset.caption_images(max_cost=budget)
    assert all(asked(first)) and len(recorder.requests) == N - 1
    new = Path(dataset.files[2])
    new.write_bytes(Path(dataset.files[3]).read_bytes()[:-1] + b"x")
    again = dataset.caption_images(max_cost=f"{N * TOKENS} tokens")
    assert all(asked(again)) and len(recorder.requests) == N


def test_tokens_that_nobody_counts_have_no_price(dataset, recorder):
    recorder.reply = describe
    with pytest.raises(UserError, match=r"captioner\.price_input"):
        dataset.caption_images(max_cost=1.0, price_input=2.0)
    assert len(recorder.requests) == 1


def test_seconds_count_from_the_first_question(monkeypatch):
    now = [50.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    budget = Budget.of("10 seconds", 2, "scores.max_cost")
    now[0] = 99.0
    budget.start()
    now[0] = 103.0
    budget.start()  # of a second attempt
    assert budget.has_room(under_way=0)
    now[0] = 104.5
    assert not budget.has_room(under_way=0)
