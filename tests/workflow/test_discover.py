"""Photographs without class names, through Snakemake."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from support.checkout import printed, run_printed

from latteclip.core import tables
from latteclip.core.tables import ClassesMetadata
from latteclip.discover.proposal import FILE, read_proposal

NAMES = ("cup", "dog", "car")
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
N = 24
RESULTS = "results/mine"
LABELS = f"{RESULTS}/pseudo_labels.parquet"


@pytest.fixture
def configured(checkout):
    """Options of a run on pictures of three colours, whose names the user gives."""
    rng = np.random.default_rng(0)
    photos = checkout.root / "photos"
    photos.mkdir()
    answers = []
    for number in range(N):
        kind = number % len(NAMES)
        noise = rng.normal(0, 40, (64, 64, 3))
        pixels = np.clip(COLOURS[kind] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:02d}.png")
        answers.append({"image_id": f"{number:02d}.png", "caption": f"a {NAMES[kind]}"})
    lines = "\n".join(json.dumps(answer) for answer in answers)
    (checkout.root / "names.jsonl").write_text(lines)
    dataset = {
        "source": {"folder": "photos"},
        "class_names": "discover",
        "clip": {"model": "local-dir:latteclip/demo/models/clip"},
        "captioner": {"engine": "file", "images_file": "names.jsonl"},
    }
    text = yaml.safe_dump({"dataset": "mine", "datasets": {"mine": dataset}})
    (checkout.root / "mine.yaml").write_text(text)
    return ["--configfile", "mine.yaml", "--config", "method=zero_shot"]


def test_labels_are_of_the_proposed_classes_and_follow_what_a_person_does(
    checkout, configured, monkeypatch, capfd
):
    """On the page, and then in classes.txt, which nothing overwrites."""
    results = checkout.root / RESULTS
    output = checkout.ran(LABELS, *configured)
    tried = run_printed(checkout, printed(output), monkeypatch, capfd)
    assert f"latteclip classes {RESULTS}" in tried
    [plan] = [tried[one] for one in tried if "discover=" in one]
    assert "pseudo_label" not in plan  # of another number of classes
    classes = (results / "classes.txt").read_text().splitlines()
    assert sorted(classes) == sorted(NAMES)
    assert len(pq.read_table(checkout.root / LABELS)) == N
    assert "Nothing to be done" in checkout.ran(LABELS, *configured)

    proposal = read_proposal(results / FILE).about.digest
    renamed = {"do": "rename", "of": classes.index("dog"), "name": "hound"}
    left_out = {"do": "leave_out", "of": classes.index("car")}
    actions = {"proposal": proposal, "actions": [renamed, left_out]}
    (results / "classes.json").write_text(json.dumps(actions))
    checkout.ran(LABELS, *configured)
    assert "rule name_images:" not in checkout.log()
    known = tables.read_metadata(checkout.root / LABELS, ClassesMetadata).classnames
    assert sorted(known) == ["cup", "hound"]
    assert len(pq.read_table(checkout.root / LABELS)) == N - N // len(NAMES)

    (results / "classes.txt").write_text("hare\ncup\ncar\n")
    fewer = "discover={'classes': 2}"  # would rerun the proposal
    checkout.ran(LABELS, *configured, fewer)
    known = tables.read_metadata(checkout.root / LABELS, ClassesMetadata).classnames
    assert known == ["hare", "cup", "car"]
    assert len(pq.read_table(checkout.root / LABELS)) == N - N // len(NAMES)


def test_examples_name_the_classes_and_teach_the_labels(checkout, configured):
    for kind, colour in zip(NAMES, COLOURS, strict=True):
        folder = checkout.root / "examples" / kind
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), colour).save(folder / "1.png")
    labels = f"{RESULTS}/fused_labels.parquet"
    options = (*configured, "class_names=null", "split={'examples': 'examples'}")
    checkout.ran(labels, *options)
    metadata = tables.read_metadata(checkout.root / labels, ClassesMetadata)
    assert metadata.classnames == sorted(NAMES)
    assert len(pq.read_table(checkout.root / labels)) == N
    report = json.loads((checkout.root / RESULTS / "fused_labels.json").read_text())
    assert report["examples"] == len(NAMES)
    assert "Nothing to be done" in checkout.ran(labels, *options)
    Image.new("RGB", (64, 64)).save(checkout.root / "examples" / NAMES[0] / "2.png")
    more = checkout.ran("--dry-run", labels, *options)
    assert "encode_examples" in more and "index_images" not in more
