"""The stage that proposes classes."""

import json

import pyarrow.parquet as pq
import pytest
from support.unnamed import N, run, write_inputs

from latteclip.core.errors import UserError


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
