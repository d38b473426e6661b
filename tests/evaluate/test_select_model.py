import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.evaluate import judged
from latteclip.evaluate import select_model as stage
from latteclip.evaluate.results import read_selection

N, C = 30, 4
IDS = [f"{i}.png" for i in range(N)]
CLASSNAMES = [f"class {c}" for c in range(C)]
# Method: objective, share of the votes that it agrees with, accuracy on the test split, marks.
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
            files = {name: folder / method / name for name in ("metrics", "judged", "model")}
            files["model"].mkdir(parents=True)
            (files["model"] / "weights").write_text(f"of {method}")
            (files["model"] / ".snakemake_timestamp").write_text("")
            acc1 = acc1 if accuracies is None else accuracies[method]
            values = {"dataset": "set", "method": method, "seed": 0, "marks": marks}
            values |= {"images": 9, "per_class": [], "acc1": acc1, "acc5": acc1}
            files["metrics"].write_text(json.dumps({**values, "mean_per_class_recall": acc1}))
            agree = np.arange(N) < share * N
            predictions = np.where(agree, np.arange(N), np.arange(N) + 1) % C
            self.write_predictions(files["judged"], predictions)
            self.runs.append(
                stage.CandidateFiles(method, 0, objective, False, *map(str, files.values()))
            )
        self.write_votes(votes)

    def write_predictions(self, path, predictions, classnames=CLASSNAMES, ids=IDS):
        columns = {"image_id": ids[::-1], "prediction": predictions[::-1].astype(np.int32)}
        tables.write(path, columns, judged.JUDGED, {"classnames": classnames})

    def write_votes(self, votes, **described):
        described = {"votes": "captions", "corroborated": True, "told": False, **described}
        described |= {"classnames": CLASSNAMES}
        columns = {"image_id": IDS[: len(votes)], "vote": votes.tolist()}
        columns["head"] = pa.nulls(len(votes), pa.int32())
        tables.write(self.folder / "votes.parquet", columns, tables.VOTES, described)

    def select(self, *, votes=True):
        path = str(self.folder / "votes.parquet") if votes else None
        output, model = self.folder / "selection.json", self.folder / "model"
        stage.select_model("set", self.runs, path, str(output), str(model))
        return json.loads(output.read_text()), (model / "weights").read_text()


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_the_model_that_agrees_with_the_votes_is_chosen_and_told(results):
    found, weights = results.select()
    assert (found["dataset"], found["method"], found["seed"]) == ("set", "image_prototypes", 0)
    assert weights == "of image_prototypes"
    assert found["reason"] == (
        "image_prototypes agrees with 58.0 % of 30 votes that it did not learn from, zero_shot "
        "with 22.0 %."
    )
    told = {row["method"]: row for row in found["candidates"]}
    assert list(told) == list(RUNS)
    for method, (_, share, acc1, marks) in RUNS.items():
        row = told[method]
        assert row["agreement"] == pytest.approx(share * 0.7 + (1 - share) * 0.1)
        assert row["lead"]["mean"] == pytest.approx((share - 0.8) * 0.6)
        assert row["lead"]["n"] == N
        assert (row["acc1"], row["marks"]) == (acc1, marks)
    assert told["image_prototypes"]["lead"]["error"] == 0
    assert told["flyp"]["lead"]["error"] == pytest.approx(0.6 * (0.2 * 0.8 / (N - 1)) ** 0.5)
    assert found["regret"] == pytest.approx(30)
    assert found["rank_correlation"] == pytest.approx(-2 / 95**0.5)
    selection = read_selection(results.folder / "selection.json")
    assert (selection.method, selection.reason) == ("image_prototypes", found["reason"])


@pytest.mark.parametrize("acc1", [None, 0.0, 1.0])
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
    assert found["rank_correlation"] is None


@pytest.mark.parametrize(
    ("votes", "described", "why"),
    [
        (False, {}, "this run has neither captions of images nor class scores"),
        (True, {"corroborated": False}, "the captions agree with the images no better than"),
        (True, {"told": True}, "the captions were asked for with zero-shot labels in the prompt"),
    ],
)
def test_without_votes_that_tell_calibrated_zero_shot_is_chosen(results, votes, described, why):
    results.write_votes(np.full((N, C), 1 / C), **described)
    found, weights = results.select(votes=votes)
    assert weights == "of zero_shot_calibrated"
    assert found["reason"].startswith(
        f"zero_shot_calibrated is taken as the safest, for nothing judges: {why}"
    )
    assert {row["lead"] for row in found["candidates"]} == {None}
    assert {row["agreement"] for row in found["candidates"]} == {None}
    assert found["regret"] == pytest.approx(40)


def test_few_votes_judge_nothing(results):
    results.write_votes(np.full((19, C), 1 / C))
    found, _ = results.select()
    assert found["method"] == "zero_shot_calibrated"
    assert "it takes 20 images with votes, and there are 19" in found["reason"]


def test_what_few_images_judged_is_judged_by_them_alone(results):
    path = Path(results.runs[3].judged)
    results.write_predictions(path, np.arange(27) % C, ids=IDS[:27])
    found, weights = results.select()
    assert weights == "of latteclip"  # right for all of them, and the prototypes for 24
    assert found["reason"].startswith("latteclip agrees with 70.0 % of 27 votes")


def test_models_that_were_trained_on_all_images_are_not_judged(results):
    for run in results.runs[3:]:
        results.write_predictions(Path(run.judged), np.zeros(0, int), ids=[])
    found, weights = results.select()
    assert weights == "of image_prototypes"
    assert [row["agreement"] is None for row in found["candidates"]] == [False] * 3 + [True] * 2
    assert found["reason"].endswith("; nothing was left out that could judge what was trained.")
    results.runs = results.runs[3:]
    shutil.rmtree(results.folder / "model")
    found, weights = results.select()
    assert weights == "of latteclip"
    assert "all of them were trained, and no image was left out" in found["reason"]
    assert found["rank_correlation"] is None


def test_the_files_are_links_but_for_those_of_snakemake(results):
    results.select()
    model = results.folder / "model"
    assert [path.name for path in model.iterdir()] == ["weights"]
    assert (model / "weights").stat().st_nlink == 2


def test_where_links_cannot_be_made_files_are_copied(results, monkeypatch):
    def refuse(*names):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    _, weights = results.select()
    assert weights == "of image_prototypes"
    assert (results.folder / "model" / "weights").stat().st_nlink == 1


def test_predictions_of_other_classes_are_refused(results):
    path = Path(results.runs[2].judged)
    results.write_predictions(path, np.zeros(N, int), CLASSNAMES[::-1])
    with pytest.raises(UserError, match="judged is of other classes than the votes"):
        results.select()
    assert not (results.folder / "model").exists()
