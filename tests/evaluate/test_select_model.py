import itertools
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate import select_model as stage
from latteclip.evaluate.results import Accuracy, Audit, Comparison, read_selection
from latteclip.evaluate.train_predictions import TRAIN_PREDICTIONS

N, C = 120, 4
IDS = [f"{i}.png" for i in range(N)]
CLASSNAMES = [f"class {c}" for c in range(C)]
# Method: objective, share of the images whose caption it agrees with, test accuracy, marks.
RUNS = {
    "zero_shot": ("zero_shot", 0.2, 0.3, []),
    "zero_shot_calibrated": ("zero_shot_calibrated", 0.3, 0.5, ["ours"]),
    "image_prototypes": ("image_prototypes", 0.8, 0.6, ["ours"]),
    "latteclip": ("latteclip", 0.3, 0.9, []),
    "flyp": ("flyp", 1.0, 0.1, ["collapsed"]),
}


class Results:
    """The files of the runs, and the votes."""

    def __init__(self, folder, accuracies=None):
        self.folder = folder
        votes = np.full((N, C), 0.1)
        votes[np.arange(N), np.arange(N) % C] = 0.7
        self.runs = []
        for method, (objective, share, acc1, marks) in RUNS.items():
            files = {
                name: folder / method / name for name in ("metrics", "train_predictions", "model")
            }
            files["model"].mkdir(parents=True)
            (files["model"] / "weights").write_text(f"of {method}")
            (files["model"] / ".snakemake_timestamp").write_text("")
            acc1 = acc1 if accuracies is None else accuracies[method]
            values = {"dataset": "set", "method": method, "seed": 0, "marks": marks}
            values |= {"images": 9, "per_class": [], "acc1": acc1, "acc5": acc1}
            files["metrics"].write_text(json.dumps({**values, "mean_per_class_recall": acc1}))
            agree = np.arange(N) < share * N
            predictions = np.where(agree, np.arange(N), np.arange(N) + 1) % C
            self.write_predictions(files["train_predictions"], predictions)
            self.runs.append(stage.CandidateFiles(method, 0, objective, *map(str, files.values())))
        self.write_votes(votes)

    def write_predictions(self, path, predictions, classnames=CLASSNAMES, ids=IDS):
        columns = {"image_id": ids[::-1], "prediction": predictions[::-1].astype(np.int32)}
        columns["held_out"] = [True] * len(ids)
        tables.write(path, columns, TRAIN_PREDICTIONS, {"classnames": classnames})

    def write_votes(self, votes, **described):
        described = {"votes": "captions", "corroborated": True, "told": False, **described}
        described |= {"classnames": CLASSNAMES}
        columns = {"image_id": IDS[: len(votes)], "vote": votes.tolist()}
        columns["head"] = pa.nulls(len(votes), pa.int32())
        tables.write(self.folder / "votes.parquet", columns, tables.VOTES, described)

    def select(self, *, votes=True, audit=None):
        path = str(self.folder / "votes.parquet") if votes else None
        output, model = self.folder / "selection.json", self.folder / "model"
        stage.select_model("set", self.runs, path, audit, str(output), str(model))
        return json.loads(output.read_text()), (model / "weights").read_text()


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_the_model_that_captions_favour_is_chosen_and_all_counts_are_written(results):
    found, weights = results.select()
    assert (found["dataset"], found["method"], found["seed"]) == ("set", "image_prototypes", 0)
    assert (found["by"], found["reference"]) == ("votes", {"method": "image_prototypes", "seed": 0})
    assert weights == "of image_prototypes"
    rows = {row["method"]: row for row in found["candidates"]}
    assert list(rows) == list(RUNS)
    for method, (_, share, acc1, marks) in RUNS.items():
        differ = round(abs(0.8 - share) * N)
        votes, other_votes = (differ, 0) if share > 0.8 else (0, differ)
        assert rows[method]["votes"] == {
            "images": N,
            "with_reference": {
                "images": N,
                "differ": differ,
                "votes": votes,
                "other_votes": other_votes,
            },
        }
        assert (rows[method]["acc1"], rows[method]["marks"]) == (acc1, marks)
        assert rows[method]["answers"] is None
    assert found["regret"] == pytest.approx(30)
    selection = read_selection(results.folder / "selection.json")
    assert (selection.method, selection.reason) == ("image_prototypes", found["reason"])


def test_answers_choose_and_are_written_beside_the_votes(results):
    accuracies = dict.fromkeys(RUNS, 0.3) | {"latteclip": 0.9, "flyp": 1.0}
    runs = [Accuracy(method, 0, value, value, value) for method, value in accuracies.items()]
    pairs = itertools.combinations(runs, 2)
    comparisons = [
        Comparison(*one.run, *other.run, *[one.value - other.value] * 3, True, None)
        for one, other in pairs
    ]
    audit = Audit("set", "test", 9, 9, 0, 0, "plan", "A verdict.", runs, comparisons)
    path = results.folder / "audit.json"
    path.write_text(json.dumps(asdict(audit)))
    found, weights = results.select(audit=str(path))
    assert (weights, found["by"]) == ("of latteclip", "answers")  # flyp collapsed
    assert [row["answers"]["value"] for row in found["candidates"]] == [*accuracies.values()]


@pytest.mark.parametrize("acc1", [None, 1.0])
def test_accuracies_have_no_part_in_the_choice(results, tmp_path, acc1):
    known, _ = results.select()
    accuracy = [values[2] for values in RUNS.values()]
    turned = dict(zip(RUNS, accuracy[::-1], strict=True))
    for accuracies in (turned, dict.fromkeys(RUNS, acc1)):
        folder = tmp_path / f"with {list(accuracies.values())}"
        found, weights = Results(folder, accuracies).select()
        assert weights == "of image_prototypes"
        assert found["reason"] == known["reason"]
    assert (found["regret"] is None) == (acc1 is None)


@pytest.mark.parametrize(
    ("votes", "n", "described"),
    [
        (False, N, {}),
        (True, N, {"corroborated": False}),
        (True, N, {"told": True}),
        (True, 19, {}),
    ],
)
def test_without_votes_that_tell_calibrated_zero_shot_is_chosen(results, votes, n, described):
    results.write_votes(np.full((n, C), 1 / C), **described)
    found, weights = results.select(votes=votes)
    assert weights == "of zero_shot_calibrated"
    assert n < N or found["by"] == "default"
    assert found["regret"] == pytest.approx(40)


def test_models_that_were_trained_on_all_images_are_not_judged(results):
    for run in results.runs[3:]:
        results.write_predictions(Path(run.train_predictions), np.zeros(0, int), ids=[])
    found, weights = results.select()
    assert weights == "of image_prototypes"
    assert [row["votes"] is None for row in found["candidates"]] == [False] * 3 + [True] * 2
    results.runs = results.runs[3:]
    shutil.rmtree(results.folder / "model")
    _, weights = results.select()
    assert weights == "of latteclip"


def test_the_files_are_links_but_for_those_of_snakemake_and_else_copies(results, monkeypatch):
    results.select()
    model = results.folder / "model"
    assert [path.name for path in model.iterdir()] == ["weights"]
    assert (model / "weights").stat().st_nlink == 2
    shutil.rmtree(model)

    def refuse(*names):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    _, weights = results.select()
    assert weights == "of image_prototypes"
    assert (model / "weights").stat().st_nlink == 1


def test_predictions_of_other_classes_are_refused(results):
    path = Path(results.runs[2].train_predictions)
    results.write_predictions(path, np.zeros(N, int), CLASSNAMES[::-1])
    with pytest.raises(UserError, match="train_predictions"):
        results.select()
    assert not (results.folder / "model").exists()
