"""The same images in folders, in tars and in Parquet files, through Snakemake."""

import pyarrow.parquet as pq
import yaml
from support.shards import labelled, parquet_shard, tar_shard

CLASSES = [f"class {label}" for label in range(6)]
NUMBERS = {"train": range(24), "test": range(24, 42)}
KINDS = {"folders": "folders", "tars": "webdataset", "rows": "parquet"}
COMMON = {
    "template": "a photo of a {}.",
    "prompts": {"image": "Describe it.", "group": "Describe them."},
    "clip": {"model": "local-dir:latteclip/demo/models/clip", "pretrained": None},
}


def write(root):
    """The three forms of the images, and a file of their datasets."""
    for split, numbers in NUMBERS.items():
        samples = labelled(numbers, len(CLASSES), form="PNG")
        pictures = [parts["jpg"] for _, parts in samples]
        labels = [int(parts["cls"]) for _, parts in samples]
        tar_shard(root / "tars" / f"{split}-000000.tar", samples)
        parquet_shard(root / "rows" / f"{split}.parquet", pictures, labels, CLASSES, rows=5)
        for (key, parts), label in zip(samples, labels, strict=True):
            folder = root / "folders" / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{key}.jpg").write_bytes(parts["jpg"])
    (root / "tars" / "classes.txt").write_text("\n".join(CLASSES))
    datasets = {
        name: {"source": {"folder": name}, "split": {"kind": kind}, **COMMON}
        for name, kind in KINDS.items()
    }
    (root / "shards.yaml").write_text(yaml.safe_dump({"datasets": datasets}))


def by_picture(root, dataset, file, column):
    """The values of a column by the number of the picture."""
    index = pq.read_table(root / "results" / dataset / "images.parquet").to_pydict()
    table = pq.read_table(root / "results" / dataset / file).to_pydict()
    values = dict(zip(table["image_id"], table[column], strict=True))
    order = {}
    for split, numbers in NUMBERS.items():
        ids = [
            i
            for i, part in zip(index["image_id"], index["split"], strict=True)
            if part == split
        ]
        if dataset == "folders":
            ids.sort(key=lambda image_id: image_id.rpartition("/")[2])
        order |= dict(zip(numbers, ids, strict=True))
    return {number: values[i] for number, i in order.items() if i in values}


def test_shards_give_what_folders_give(new_checkout):
    checkout = new_checkout("shards")
    write(checkout.root)
    wanted = [f"results/{name}/zero_shot/seed0/metrics.json" for name in KINDS]
    chosen = ["dataset=folders,tars,rows", "method=zero_shot", "seeds=1"]
    run = checkout.snakemake(*wanted, "--configfile", "shards.yaml", "--config", *chosen)
    assert run.returncode == 0, run.stdout
    for file, column, n in (
        ("pseudo_labels.parquet", "pseudo_label", 42),
        ("zero_shot/seed0/predictions.parquet", "prediction", 18),
        ("zero_shot/seed0/predictions.parquet", "label", 18),
    ):
        found = [by_picture(checkout.root, name, file, column) for name in KINDS]
        assert found[0] == found[1] == found[2] and len(found[0]) == n
