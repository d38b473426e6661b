"""A run of the demo whose labels a decision model votes for, within a budget."""

import json

import pyarrow.parquet as pq
from support.captioning import mean_colour
from support.checkout import N_TRAIN
from support.servers import PRICE, DecisionServer, decisions  # noqa: F401

from latteclip.captions.pictures import Layout, pictures_of, read_image
from latteclip.core import tables
from latteclip.core.metadata import IndexMetadata

SIDE = 64  # pixels of the square that is sent
TOKENS = (SIDE // 32) ** 2 + 95 + 2 * 92
N = 40  # images within the budget
RESULTS = "results/demo"


def tell(root):
    """The class of each training image, by the mean colour of the picture that is sent."""
    index = root / RESULTS / "images.parquet"
    names = tables.read_metadata(index, IndexMetadata).classnames
    table = tables.read(index, tables.IMAGES, ["path", "label"]).to_pydict()
    classes = {}
    for path, label in zip(table["path"], table["label"], strict=True):
        file = str(root / path)
        [picture] = pictures_of(Layout(square=SIDE), [file], [read_image(file)])
        classes[mean_colour(picture)] = names[label]
    return classes


def asked_images(path):
    rows = pq.read_table(path).to_pylist()
    return {row["image_id"] for row in rows if row["options"]}


def right_of(root):
    """A function of a picture and a question that knows the class of each training image."""
    class_of = tell(root)

    def decide(picture, question):
        right = class_of[mean_colour(picture)]
        others = [name for name in question["criteria"] if name != right]
        return {right: 0.9, **dict.fromkeys(others, 0.1 / len(others))}

    return decide


def test_labels_by_a_decision_model_within_a_budget(finished_copy, decisions):  # noqa: F811
    root = finished_copy.root
    decisions.decide = right_of(root)
    max_cost = (N + 0.5) * TOKENS * PRICE / 1e6
    options = [
        "seeds=1",
        "method=zero_shot,flyp",
        "methods={'flyp': {'pseudo_labels': 'lmm'}}",
        f"captioner={{'engine': 'decisions', 'model': 'decider', 'square_side': {SIDE}, "
        "'requests_per_second': 1000}",
        f"scores={{'kind': 'decisions', 'choose': 'gain', 'max_cost': {max_cost}, "
        "'rounds': 2}",
    ]
    run = finished_copy.snakemake("--config", *options)
    assert run.returncode == 0, run.stdout
    of_rounds = [
        asked_images(root / RESULTS / name)
        for name in ("rounds/class_scores-1.parquet", "class_scores.parquet")
    ]
    assert [len(images) for images in of_rounds] == [N // 2, N]
    assert of_rounds[0] < of_rounds[1]
    scores = pq.read_table(root / RESULTS / "class_scores.parquet").to_pydict()
    asked = [bool(options) for options in scores["options"]]
    assert len(asked) == N_TRAIN and len(decisions.requests) == sum(asked) == N
    labels = pq.read_table(root / RESULTS / "fused_labels.parquet").to_pydict()
    index = pq.read_table(root / RESULTS / "images.parquet").to_pydict()
    true = dict(zip(index["image_id"], index["label"], strict=True))
    for image_id, label, is_asked in zip(
        labels["image_id"], labels["lmm_label"], asked, strict=True
    ):
        assert label == true[image_id] or not is_asked
    assert (root / RESULTS / "flyp/seed0/metrics.json").is_file()
    status = finished_copy.latteclip("status", "demo", "--config", *options)
    assert "which cost" in status.stdout
    scored = f"{RESULTS}/class_scores.parquet"
    again = finished_copy.snakemake(scored, "-R", "score_classes", "--config", *options)
    assert again.returncode == 0, again.stdout
    assert len(decisions.requests) == N


def test_a_decision_model_votes_beside_captions_within_the_budget_of_all(
    finished_copy,
    decisions,  # noqa: F811
):
    root = finished_copy.root
    decisions.decide = right_of(root)
    captioner = {"square_side": SIDE, "requests_per_second": 1000}
    decider = {"name": "decider", "kind": "decisions", "model": DecisionServer.model}
    # The budget ends the questions, also where captions leave little to gain.
    choice = {"choose": "gain", "rounds": 2, "min_gain": 0}
    given = {
        "seeds": 1,
        "method": "zero_shot,image_prototypes",
        "max_cost": (N + 0.5) * TOKENS * PRICE / 1e6,  # captions of the demo have no price
        "voters": [
            {"name": "words", "kind": "captions"},
            {**decider, "captioner": captioner, "scores": choice},
        ],
    }
    (root / "given.yaml").write_text(json.dumps(given))
    options = ["--configfile", "given.yaml"]
    planned = finished_copy.snakemake("--dry-run", *options)
    assert "class scores of the voter decider" in planned.stdout
    assert decisions.requests == []
    run = finished_copy.snakemake(*options)
    assert run.returncode == 0, run.stdout
    first = asked_images(root / RESULTS / "rounds" / "decider" / "class_scores-1.parquet")
    asked = asked_images(root / RESULTS / "voters" / "decider.parquet")
    assert len(first) == N // 2 and first < asked
    assert len(asked) == len(decisions.requests) == N
    shown = finished_copy.latteclip("labellers", RESULTS, "--json")
    by_name = {one["name"]: one for one in json.loads(shown.stdout)["labellers"]}
    assert by_name["decider"]["right"]["where_it_votes"] == 1.0
    assert by_name["decider"]["rest"]["images"] == N_TRAIN - N
    assert by_name["decider"]["rest"]["reason"] == "max_cost"
    assert by_name["decider"]["per_1000"]["price"] > 0
    summary = (root / "results" / "summary.md").read_text()
    assert "| decider" in summary and "fused" in summary
    scored = f"{RESULTS}/voters/decider.parquet"
    again = finished_copy.snakemake(scored, "-R", "score_classes_voter", *options)
    assert again.returncode == 0, again.stdout
    assert len(decisions.requests) == N
