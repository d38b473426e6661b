"""Real photographs through every stage, by configuration alone.

The demo's models know nothing about photographs: the accuracies mean nothing, and are not asserted.
"""

import json
import math
import shutil

import pyarrow.parquet as pq
import pytest
import yaml

PER_CLASS, SPLITS = 6, ["train", "train", "train", "val", "test", "test"]
COMMON = {
    "template": "a photo of a {} texture.",
    "prompts": {"image": "Describe the texture.", "group": "Describe the {} textures."},
    "clip": {"model": "local-dir:latteclip/demo/models/clip", "pretrained": None},
    "captioner": {
        "engine": "transformers",
        "model": "latteclip/demo/models/llava",
        "dtype": "float32",
        "max_new_tokens": 8,
        "max_model_len": 256,
        "batch_size": 20,
    },
    "groups": {"canvas": 128, "gap": 4},
    "finetune": {"epochs": 1, "batch_size": 16, "warmup_steps": 1, "lr": 1e-4},
    "threads": {"caption": 1, "finetune": 1, "evaluate": 1},
}


def slice_of(photographs):
    """Six photographs of each class: [path, label, classname] by split."""
    split = json.loads(next(photographs.glob("split_*.json")).read_text())
    taken = {"train": [], "val": [], "test": []}
    seen = {}
    for path, label, classname in [*split["train"], *split["val"], *split["test"]]:
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= PER_CLASS:
            taken[SPLITS[seen[label] - 1]].append([path, label, classname])
    return taken


@pytest.fixture(scope="module")
def photos(photographs, new_checkout):
    """A checkout after all stages on a folder with a split JSON."""
    checkout = new_checkout("photographs")
    taken = slice_of(photographs)
    for rows in taken.values():
        for path, _, _ in rows:
            target = checkout.root / "json" / "images" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photographs / "images" / path, target)
    (checkout.root / "json" / "split.json").write_text(json.dumps(taken))
    split = {"kind": "coop", "file": "split.json", "images": "images"}
    datasets = {"json": {"source": {"folder": "json"}, "split": split, **COMMON}}
    (checkout.root / "photos.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    chosen = ["dataset=json", "method=zero_shot,latteclip", "seeds=1"]
    run = checkout.snakemake("--configfile", "photos.yaml", "--config", *chosen)
    assert run.returncode == 0, run.stdout
    return checkout.root, taken


def parquet(root, name):
    return pq.read_table(root / "results" / name).to_pydict()


def test_index_follows_the_split_json(photos):
    root, taken = photos
    index = parquet(root, "json/images.parquet")
    found = set(zip(index["split"], index["image_id"], index["label"], strict=True))
    assert found == {(part, path, label) for part in taken for path, label, _ in taken[part]}
    assert all(side > 64 for side in index["width"] + index["height"])


def test_every_stage_covers_the_photographs(photos):
    root, taken = photos
    n_test = len(taken["test"])
    n_train = len(taken["train"]) + len(taken["val"])
    assert len(parquet(root, "json/pseudo_labels.parquet")["image_id"]) == n_train + n_test
    images = parquet(root, "json/captions/images.parquet")
    groups = parquet(root, "json/captions/groups.parquet")
    assert len(images["caption"]) == len(groups["caption"]) == n_train
    assert all(images["caption"] + groups["caption"])
    assert all(len(members) == 4 for members in groups["members"])
    history = parquet(root, "json/latteclip/seed0/history.parquet")
    assert history["step"] == list(range(math.ceil(n_train / 16)))
