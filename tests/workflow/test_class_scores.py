"""The rule score_classes, alone and in shards."""

import pyarrow.parquet as pq
from support.checkout import DEMO, N_TRAIN, edit

TARGET, UNKNOWN = "results/demo/class_scores.parquet", "results/demo/unknown.parquet"


def change(checkout, key, value):
    edit(checkout, DEMO, lambda content: content["datasets"]["demo"].update({key: value}))


def test_every_training_image_has_scores_and_shards_ask_for_them_once(finished_copy):
    root = finished_copy.root
    change(finished_copy, "scores", {"kind": "likelihood"})
    run = finished_copy.snakemake(TARGET, UNKNOWN)
    assert run.returncode == 0, run.stdout
    scores, unknown = (pq.read_table(root / name).to_pydict() for name in (TARGET, UNKNOWN))
    assert len(scores["image_id"]) == N_TRAIN and scores["error"] == [None] * N_TRAIN
    n_classes = len(set(scores["options"][0]))
    for name in ("options", "log_probabilities"):
        assert {len(values) for values in scores[name]} == {n_classes}
    pairs = zip(unknown["image_id"], unknown["captioner_score"], strict=True)
    assert {name for name, score in pairs if score is not None} == set(scores["image_id"])

    change(finished_copy, "captions", {"shards": 2})
    run = finished_copy.snakemake(TARGET)
    assert run.returncode == 0, run.stdout
    assert pq.read_table(root / TARGET).to_pydict() == scores
    for shard in ("1-of-2", "2-of-2"):
        log = root / "results/demo/logs" / f"score_classes-{shard}.log"
        assert "Asked 0 requests" in log.read_text()
    assert not list((root / "results/demo/captions").rglob("*-of-2.parquet"))
