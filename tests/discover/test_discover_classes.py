"""The stage that proposes classes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.unnamed import N, run, write_inputs

from latteclip.core.errors import UserError
from latteclip.discover.classes import ClassesPage
from latteclip.discover.grouping import Evidence
from latteclip.discover.inputs import read_proposal, write_proposal
from latteclip.discover.names import read_names
from latteclip.discover.proposal import Action, questions, start
from latteclip.discover.propose_classes import discover


def test_classes_names_and_members_are_written(results):
    names = (results / "classes.txt").read_text().splitlines()
    assert len(names) == 3
    assert {"cup", "dog"} < set(names)
    described = json.loads((results / "discovery.json").read_text())
    assert described["actions"] == 0  # nobody has looked
    assert [one["images"] for one in described["classes"]] == [N // 3] * 3
    members = pq.read_table(results / "discovered.parquet").to_pydict()
    assert members["classname"] == [members["classname"][i % 3] for i in range(N)]
    assert min(members["confidence"]) > 0.9


def test_images_of_a_dropped_class_have_none_and_the_likeliest_other(results):
    page = ClassesPage(results)
    page.save([Action(do="drop", of=0)], page.saved().revision)
    run(results, actions_path=str(results / "classes.json"))
    members = pq.read_table(results / "discovered.parquet").to_pylist()
    dropped = [one for one in members if one["classname"] is None]
    assert len(dropped) == N // 3
    assert {one["confidence"] for one in dropped} == {0.0}


def test_the_page_needs_neither_names_nor_features(results):
    first = ClassesPage(results).page()
    for name in ("names.parquet", "looks.parquet"):
        (results / name).unlink()
    assert ClassesPage(results).page() == first


def test_a_proposal_that_is_read_asks_what_the_first_asked(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(5), 12)
    looks = rng.normal(size=(5, 8))[truth] + 0.5 * rng.normal(size=(60, 8))
    answers = [f"{'old ' * (i % 2)}name{k}" for i, k in enumerate(truth)]
    evidence = Evidence.of(looks.astype(np.float32), read_names(answers))
    found = discover([f"{i}.jpg" for i in range(60)], evidence, 3)
    files = [str(tmp_path / name) for name in ("leaves.parquet", "members.parquet")]
    write_proposal(found, *files)
    again = read_proposal(*files)
    state = start(found.proposal)
    assert questions(again.proposal, state) == questions(found.proposal, state)
    assert (again.digest, again.terms, again.wanted) == (found.digest, found.terms, 3)
    np.testing.assert_array_equal(again.nearest, found.nearest)


def test_a_rerun_writes_the_same(results):
    before = (results / "discovery.json").read_bytes()
    run(results)
    assert (results / "discovery.json").read_bytes() == before


@pytest.mark.parametrize(
    "answers", [[""] * 20, ["thing"] * 20, [f"name{i}" for i in range(20)]]
)
def test_images_of_fewer_than_two_classes_are_an_error(tmp_path, answers):
    write_inputs(tmp_path, answers)
    with pytest.raises(UserError, match=r"names\.parquet"):
        run(tmp_path)
    assert not (tmp_path / "classes.txt").exists()


def test_actions_of_another_proposal_are_refused(results):
    path = results / "classes.json"
    path.write_text('{"proposal": "other", "actions": [{"do": "drop", "of": 0}]}')
    with pytest.raises(UserError, match=r"classes\.json"):
        run(results, actions_path=str(path))
