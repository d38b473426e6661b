"""Properties on features of real CLIPs and answers of a real model, where they are at hand."""

import json
import os

import numpy as np
import pytest
from support.tiny import SHARED, benchmark

EVIDENCE = SHARED / "data" / "real_clip"
LOSS = 0.3  # points by which a rule may be below its input

needs_evidence = pytest.mark.skipif(
    not EVIDENCE.is_dir(), reason="no evidence of real models beside the repository"
)


@pytest.fixture(scope="module")
def bench():
    return benchmark("real_models")


@needs_evidence
@pytest.mark.parametrize("name", ["SkyCLIP50_ViT-B-32", "caltech101_72"])
def test_adapted_scores_are_not_below_zero_shot(bench, name):
    data = next(one for one in bench.read(EVIDENCE) if one.name.endswith(name))
    found = bench.untrained(data)
    assert found["untrained"] > found["zero_shot"] + 3
    if found["untrained_new"] is not None:
        assert found["untrained_new"] > found["zero_shot_new"] - LOSS


@needs_evidence
def test_labels_are_not_below_the_votes_and_more_answers_are_not_worse(bench):
    data = next(one for one in bench.read(EVIDENCE) if one.name == "dtd")
    images = data.images()
    votes = bench.first_votes(data), bench.ranked_votes(data, images, 1.5)
    first, five = (data.right(bench.fuse(images, one).labels) for one in votes)
    assert first > data.right(data.options[:, 0]) - LOSS
    assert five > first - LOSS


def test_the_benchmark_reads_a_folder_of_its_layout(bench, tmp_path):
    """Names that are no class, and images without answers, are left out."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    names = ["red dot", "blue dot", "grey dot"]
    rows, features = [], []
    for i in range(90):
        label = i % 3
        row = {
            "split": "val" if i % 5 == 4 else "test",
            "label": label,
            "class": names[label],
        }
        if row["split"] == "test":
            row["gpt4v_top5"] = [
                names[label].title(),
                "no such class",
                names[(label + 1) % 3],
            ]
        rows.append(row)
        features.append(centres[label] + 0.3 * rng.normal(size=8))
    rows[0]["gpt4v_top5"] = ["no such class"]
    (tmp_path / "dots.jsonl").write_text(os.linesep.join(map(json.dumps, rows)))
    np.save(tmp_path / "dots_clip_vitb32.npy", np.array(features, np.float16))
    texts = centres[:2].astype(np.float32)
    np.savez(tmp_path / "dots_text_few.npz", labels=np.array([0, 1]), W=texts)
    whole, some = bench.read(tmp_path)
    assert (whole.name, len(whole.labels), len(whole.new_labels)) == ("dots", 72, 18)
    assert whole.options[:2].tolist() == [[-1, -1, -1], [1, 2, -1]]
    assert (some.name, some.n_classes, len(some.labels)) == ("dots_2", 2, 48)
    assert bench.untrained(whole) == {}
    assert bench.untrained(some)["untrained"] > 90
    assert bench.labels_of_votes(whole)["labels"] > 90
