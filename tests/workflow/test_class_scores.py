"""The rule score_classes, alone and in shards."""

import pyarrow.parquet as pq
import pytest
from support.checkout import DEMO, N_TRAIN, edit, shrink

TARGET = "results/demo/class_scores.parquet"


def change(checkout, *keys, value):
    def set_value(content):
        section = content["datasets"]["demo"]
        for key in keys[:-1]:
            section = section.setdefault(key, {})
        section[keys[-1]] = value

    edit(checkout, DEMO, set_value)


@pytest.fixture(scope="module")
def scored(new_checkout):
    """A checkout in which the classes of the shrunken demo have been scored."""
    checkout = new_checkout("scored")
    edit(checkout, DEMO, shrink)
    change(checkout, "scores", "kind", value="likelihood")
    run = checkout.snakemake(TARGET)
    assert run.returncode == 0, run.stdout
    return checkout


def table(checkout):
    return pq.read_table(checkout.root / TARGET).to_pydict()


def planned(checkout):
    run = checkout.snakemake("--dry-run", TARGET)
    assert run.returncode == 0, run.stdout
    rules = ("score_classes", "score_classes_shard", "gather_scores", "pseudo_label_images")
    return {rule for rule in rules if f"rule {rule}:" in run.stdout}


def test_every_training_image_has_scores_of_all_classes(scored):
    columns = table(scored)
    assert len(columns["image_id"]) == N_TRAIN
    n_classes = len(set(columns["options"][0]))
    assert all(len(set(options)) == n_classes for options in columns["options"])
    assert all(len(values) == n_classes for values in columns["log_probabilities"])
    assert columns["error"] == [None] * N_TRAIN


def test_they_say_which_training_images_are_of_no_class(scored):
    run = scored.snakemake("results/demo/unknown.parquet")
    assert run.returncode == 0, run.stdout
    columns = pq.read_table(scored.root / "results/demo/unknown.parquet").to_pydict()
    named = zip(columns["image_id"], columns["captioner_score"], strict=True)
    scored_by_it = {name for name, score in named if score is not None}
    assert scored_by_it == set(table(scored)["image_id"])


def test_shards_write_the_same_scores_and_ask_nothing_anew(scored):
    before = table(scored)
    change(scored, "captions", value={"shards": 2})
    assert planned(scored) == {"score_classes_shard", "gather_scores"}
    run = scored.snakemake(TARGET)
    assert run.returncode == 0, run.stdout
    assert table(scored) == before
    for shard in ("1-of-2", "2-of-2"):
        log = scored.root / "results/demo/logs" / f"score_classes-{shard}.log"
        assert "Asked 0 requests" in log.read_text()
    assert not list((scored.root / "results/demo/captions").rglob("*-of-2.parquet"))
    change(scored, "captions", value={"shards": 1})
    assert scored.snakemake(TARGET).returncode == 0
    assert table(scored) == before


def test_an_edit_of_the_engine_reruns_the_scores(scored):
    path = scored.root / "latteclip/captions/engines/transformers.py"
    before = path.read_text()
    path.write_text(before + "\n# Edited.\n")
    try:
        assert planned(scored) == {"score_classes"}
    finally:
        path.write_text(before)
