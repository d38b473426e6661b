"""The key `labellers` in a run: several label together, and one as without the key."""

import csv
import shutil

import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.checkout import N_TRAIN
from support.tiny import DEMO_CLIP

from latteclip.labels.fusion_report import read_fusion_report
from latteclip.report.labellers import read_labellers

RESULTS = "results/demo"


def run(checkout, *targets, **given):
    """Run with a configuration file, and return what was printed."""
    (checkout.root / "given.yaml").write_text(yaml.safe_dump(given))
    return checkout.ran(*targets, "--configfile", "given.yaml")


def another_clip(folder):
    """The demo's CLIP with noise in its weights; its name."""
    shutil.copytree(DEMO_CLIP, folder)
    path = folder / "open_clip_model.safetensors"
    torch.manual_seed(0)
    weights = load_file(path)
    for tensor in weights.values():
        if tensor.ndim > 1:
            tensor += 0.3 * tensor.std() * torch.randn_like(tensor)
    save_file(weights, path)
    return f"local-dir:{folder}"


def test_labellers_of_all_kinds_label_together(finished_copy):
    checkout, root = finished_copy, finished_copy.root
    folder = root / RESULTS
    index = pq.read_table(folder / "images.parquet").to_pylist()
    with (root / "mine.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "class"])
        rows.writerows(
            [one["image_id"], one["classname"]] for one in index if one["split"] != "test"
        )
    labellers = [
        {"name": "words", "kind": "captions"},
        {"name": "scores", "kind": "likelihood"},
        {"name": "mine", "kind": "file", "file": "mine.csv"},
        {"name": "other", "kind": "zero_shot", "model": another_clip(root / "clip")},
        {"name": "brief", "kind": "captions", "prompt": "Name the texture."},
        {"name": "few", "kind": "likelihood", "prompt": "What is it?", "max_images": 9},
    ]
    captions = folder / "captions" / "images.parquet"
    before = captions.stat().st_mtime_ns
    given = {"seeds": 1, "method": "zero_shot,image_prototypes"}
    run(checkout, labellers=labellers, scores={"kind": "likelihood"}, **given)
    assert captions.stat().st_mtime_ns == before  # those of before
    stems = {
        name: {path.stem for path in (folder / name).glob("*.parquet")}
        for name in ("labellers", "votes")
    }
    assert stems["labellers"] == {"brief", "few"}  # answers of a captioner
    assert stems["votes"] >= {"words", "mine", "other", "brief"}
    stores = root / "resources" / "demo" / "captions"
    assert {path.name for path in (stores / "images").glob("*.sqlite")} == {
        *("1-of-1.sqlite", "1-of-1.brief.sqlite")
    }
    report = read_fusion_report(folder / "fused_labels.json")
    votes = {one.name: one.votes for one in report.labellers}
    assert {"words", "scores", "mine", "other", "brief", "few"} <= votes.keys()
    assert votes["few"] == 9
    labels = pq.read_table(folder / "fused_labels.parquet")
    assert not labels["caption_label"].null_count
    assert not labels["lmm_label"].null_count
    assert "labellers-table" in (folder / "report.html").read_text()
    parquet = [
        folder / f"{name}.parquet" for name in ("fused_labels", "pseudo_labels", "images")
    ]
    found = {one.name: right for one, right in read_labellers(report, *map(str, parquet))}
    assert found["mine"] == 1.0
    assert f"{N_TRAIN - 9:,} images left out" in (folder / "report.html").read_text()

    # A labeller that is left out reruns the labels alone, and one that comes back asks nothing.
    target = f"{RESULTS}/fused_labels.parquet"
    plan = run(checkout, target, "--dry-run", labellers=labellers[4:5], **given)
    assert "fuse_labels" in plan and "caption_images_labeller" not in plan


def test_labellers_of_two_datasets_may_differ_under_one_name(checkout):
    text = (checkout.root / "config" / "datasets" / "demo.yaml").read_text()
    text = text.replace("{package}", "latteclip")
    other = yaml.safe_load(text)["datasets"]["demo"]
    asked = {"name": "asked", "prompt": "What is it?"}
    datasets = {
        "demo": {"labellers": [{**asked, "kind": "captions"}]},
        "other": {**other, "labellers": [{**asked, "kind": "likelihood"}]},
    }
    plan = run(checkout, "labels", "-n", dataset="demo,other", datasets=datasets)
    assert "rule caption_images_labeller" in plan and "rule score_classes_labeller" in plan
