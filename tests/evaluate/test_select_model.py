import json
import re
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import read_record
from latteclip.core.tables import ClassesMetadata, VotesMetadata
from latteclip.evaluate import select_model as stage
from latteclip.evaluate.results import MISSING, Audit, AuditedRun, Selection
from latteclip.evaluate.select_model import Candidate, HeldOutVotes, choose
from latteclip.labels.guarantees import Interval

N, C = 120, 4
IDS = [f"{i}.png" for i in range(N)]
CLASSNAMES = [f"class {c}" for c in range(C)]
# Method, which is its objective: share of the images whose caption it agrees with, and flags.
RUNS = {
    "zero_shot": (0.2, []),
    "zero_shot_adapted": (0.3, ["ours"]),
    "image_prototypes": (0.8, ["ours"]),
    "latteclip": (0.3, []),
    "flyp": (1.0, ["collapsed"]),
}


class Results:
    """The files of the runs, and the votes."""

    def __init__(self, folder, acc1=0.5):
        self.folder = folder
        votes = np.full((N, C), 0.1)
        votes[np.arange(N), np.arange(N) % C] = 0.7
        self.runs = []
        for method, (share, flags) in RUNS.items():
            files = {
                name: folder / method / name
                for name in ("metrics", "train_predictions", "model")
            }
            files["model"].mkdir(parents=True)
            (files["model"] / "weights").write_text(f"of {method}")
            files["metrics"].write_text(json.dumps({"flags": flags, "acc1": acc1}))
            agree = np.arange(N) < share * N
            predictions = (np.arange(N, dtype=np.int32) + ~agree) % C
            columns = {"image_id": IDS[::-1], "prediction": predictions[::-1]}
            metadata = ClassesMetadata(CLASSNAMES)
            path = files["train_predictions"]
            tables.write(path, columns, tables.TRAIN_PREDICTIONS, metadata)
            paths = {name: str(path) for name, path in files.items()}
            self.runs.append(Candidate(method, 0, **paths))
        self.write_votes(votes)

    def write_votes(self, votes, **described):
        metadata = VotesMetadata(CLASSNAMES, **{"unfit": "", **described})
        columns = {"image_id": IDS[: len(votes)], "vote": votes.tolist()}
        columns |= dict.fromkeys(["head", "joint_head"], pa.nulls(len(votes)))
        tables.write(self.folder / "votes.parquet", columns, tables.VOTES, metadata)

    def select(self, audit=None):
        path = str(self.folder / "votes.parquet")
        output, model = self.folder / "selection.json", self.folder / "model"
        stage.select_model("set", self.runs, path, audit, str(output), str(model))
        return json.loads(output.read_text()), (model / "weights").read_text()


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_the_preferred_model_is_chosen_and_all_numbers_are_written(results):
    found, weights = results.select()
    assert weights == "of image_prototypes"
    rows = {row["method"]: row for row in found["candidates"]}
    assert rows["flyp"]["images"] is None  # it collapsed
    for method, (share, flags) in RUNS.items():
        if method != "flyp":
            differ = round(abs(0.8 - share) * N)
            assert rows[method] == {
                **{"method": method, "seed": 0, "flags": flags, "images": N},
                "difference": pytest.approx(0.6 * (share - 0.8)),
                "standard_error": pytest.approx(0.6 * differ**0.5 / N),
            }
    selection = read_record(Selection, results.folder / "selection.json")
    assert selection.run == ("image_prototypes", 0)
    # The reason has the numbers against the closest rival.
    assert {"zero_shot_adapted", "120", "30.0"} <= set(
        re.findall(r"[a-z_]{5,}|[\d.]+\d", selection.reason)
    )


def test_answers_choose(results):
    accuracies = dict.fromkeys(RUNS, 0.3) | {"latteclip": 0.9, "flyp": 1.0}
    path = results.folder / "audit.json"
    path.write_text(json.dumps(asdict(audit(results.runs, accuracies))))
    found, weights = results.select(audit=str(path))
    assert weights == "of latteclip"  # flyp collapsed
    assert "A person's answers" in found["reason"]


def test_without_votes_the_preferred_model_is_taken_and_the_reason_says_why(results):
    results.write_votes(np.zeros((0, C)), unfit="no labeller")
    found, weights = results.select()
    assert weights == "of image_prototypes"
    assert "no labeller" in found["reason"]


@pytest.mark.parametrize("acc1", [None, 1.0])
def test_accuracies_have_no_part_in_the_choice(results, tmp_path, acc1):
    known = results.select()
    assert Results(tmp_path / "other", acc1).select() == known


# --- the choice itself ---------------------------------------------------------------------------

M = 150


def candidate(method, seed=0, flags=()):
    return Candidate(method, seed, "", "", flags=flags)


def candidates(*methods):
    return [candidate(method) for method in methods]


def votes_for(*right, n=M):
    """A judge whose captions are for class 0, which candidates predict for these images.

    Elsewhere each predicts a class of its own.
    """
    rows = [
        [0 if image in images else 1 + number for image in range(n)]
        for number, images in enumerate(right)
    ]
    return HeldOutVotes(np.eye(20)[np.zeros(n, int)], np.array(rows))


def choice(named, votes, audit=None):
    able = stage.eligible(named)
    if not isinstance(votes, str):
        rows = [named.index(candidate) for candidate in able]
        votes = replace(votes, predictions=votes.predictions[rows])
    return choose(able, votes, audit)


def chosen(*args):
    return choice(*args).candidate.method


# --- by votes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_of_equals_the_preferred_is_chosen(order):
    named = candidates(*("recommended", "image_prototypes", "zero_shot", "flyp")[::order])
    assert chosen(named, votes_for(*[range(60)] * 4)) == "recommended"


@pytest.mark.parametrize(("right", "wanted"), [(3, "recommended"), (4, "zero_shot")])
def test_votes_decide_by_two_standard_errors(right, wanted):
    """Of a lead of n images, the standard error is the root of n."""
    named = candidates("recommended", "zero_shot")
    votes = votes_for(range(60), range(60 + right))
    # Where neither names the caption's class, they do not differ.
    votes.predictions[:, 60 + right :] = 7
    assert chosen(named, votes) == wanted
    # The more models are compared, the clearer a lead has to be.
    more = candidates("recommended", "zero_shot", *["flyp", "latteclip"] * 3)
    predictions = np.concatenate(
        [votes.predictions, np.tile(votes.predictions[:1], (6, 1))]
    )
    assert chosen(more, replace(votes, predictions=predictions)) == "recommended"


def test_models_compare_by_the_images_that_both_left_out():
    named = candidates("image_prototypes", "latteclip")
    votes = votes_for(range(20), range(M))
    votes.predictions[1, 20:] = MISSING
    assert chosen(named, votes) == "image_prototypes"
    votes.predictions[1, 20:40] = 0
    found = choice(named, votes)
    assert found.candidate.method == "latteclip"
    assert found.leads["latteclip", 0].images == 40


def test_what_collapsed_or_saw_labels_is_never_chosen():
    named = [
        candidate("zero_shot"),
        candidate("flyp_supervised", flags=("supervised",)),
        candidate("flyp", flags=("collapsed",)),
        candidate("latteclip", flags=("ours", "collapsed")),
        candidate("image_prototypes"),
    ]
    votes = votes_for(range(20), range(M), range(M), range(M), range(40))
    rates = {one.method: 0.1 + 0.2 * (one.method[:4] == "flyp") for one in named}
    best = audit(named, rates)
    for answers in (None, best):
        assert chosen(named, votes, answers) == "image_prototypes"
    assert chosen(named, "nobody was asked", best) == "image_prototypes"
    with pytest.raises(UserError):
        stage.eligible(named[1:2])


# --- by answers ----------------------------------------------------------------------------------


def audit(named, accuracies, decided=True):
    """An audit with these accuracies, in which every difference is decided or none is."""
    reach = 0.02 if decided else 1.0
    runs = []
    for one in named:
        gaps = [accuracies[one.method] - accuracies[other.method] for other in named]
        leads = [Interval(gap, gap - reach, gap + reach, 100) for gap in gaps]
        accuracy = Interval(accuracies[one.method], 0.0, 1.0, 100)
        runs.append(AuditedRun(one.method, one.seed, accuracy, leads))
    return Audit("set", "test", 500, 100, "A verdict.", runs)


def test_answers_that_decide_win_over_votes():
    named = candidates("zero_shot", "image_prototypes", "flyp")
    votes = votes_for(range(20), range(40), range(90))
    accuracies = {"zero_shot": 0.5, "image_prototypes": 0.62, "flyp": 0.33}
    assert chosen(named, votes) == "flyp"
    for audited, wanted in (
        (audit(named, accuracies), "image_prototypes"),
        (audit(named, accuracies, decided=False), "flyp"),
        (audit(named, {**accuracies, "flyp": 0.7}), "flyp"),
    ):
        assert chosen(named, votes, audited) == wanted
