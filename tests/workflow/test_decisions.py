"""A run of the demo that asks a decision model about some images, beside a person's answers."""

import json
import math

import pyarrow.parquet as pq
from support.checkout import N_TRAIN
from support.servers import DecisionServer, decisions  # noqa: F401

SIDE = 336  # pixels of the square that is sent: that of the demo's captioner
TOKENS = math.ceil(SIDE / 32) ** 2 + 95 + 2 * 92  # of a request
N = 20  # images to ask about
RESULTS = "results/demo"
ASKED = "class_scores.parquet"


def rows_of(path):
    return pq.read_table(path).to_pylist()


def asked_images(path):
    return {row["image_id"] for row in rows_of(path) if row["options"]}


def answer(folder, rows):
    """Write a person's answers about rows of the index."""
    answers = [
        {"image": row["image_id"], "answer": "class", "class": row["classname"]}
        for row in rows
    ]
    document = {"plan": "teach", "answers": answers}
    (folder / "answers.json").write_text(json.dumps(document))


def test_max_images_are_asked_about_and_none_that_a_person_answered(
    finished_copy,
    decisions,  # noqa: F811
):
    folder = finished_copy.root / RESULTS
    decider = {"name": "decider", "kind": "decisions", "model": DecisionServer.model}
    given = {
        "seeds": 1,
        "method": "zero_shot,image_prototypes",
        "labellers": [
            {"name": "words", "kind": "captions"},
            {**decider, "max_images": N},
        ],
    }

    def run(*arguments):
        (finished_copy.root / "given.yaml").write_text(json.dumps(given))
        finished = finished_copy.snakemake(*arguments, "--configfile", "given.yaml")
        assert finished.returncode == 0, finished.stdout
        return finished.stdout

    planned = run("--dry-run")
    assert f"the labeller decider by decider: at most {N} requests" in planned
    assert decisions.requests == []
    training = [row for row in rows_of(folder / "images.parquet") if row["split"] != "test"]
    before = training[: N_TRAIN // 3]
    answer(folder, before)
    run()
    scores = folder / "labellers" / "decider.parquet"
    first = asked_images(scores)
    assert len(first) == len(decisions.requests) == N
    assert first.isdisjoint(row["image_id"] for row in before)

    # What was used is on the page and in the summary.
    used = f"{N} requests to decider, {N * TOKENS:,} tokens read, 0 written"
    left = f"{N_TRAIN - N} images left out"
    assert f"{used}, {left}" in (folder / "report.html").read_text()
    assert f"{used}, {left}" in (folder.parent / "summary.md").read_text()

    # After later answers and with more images, nothing is asked again.
    later = [row for row in training if row["image_id"] in sorted(first)[:5]]
    answer(folder, before + later)
    given["labellers"][1]["max_images"] = N + 5
    run()
    assert first < asked_images(scores)
    assert len(decisions.requests) == N + 5 + len(later)
