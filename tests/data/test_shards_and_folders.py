"""The same images in folders, in tars and in Parquet files get the same labels."""

import pytest
from support.image_folders import index
from support.shards import labelled, parquet_shard, tar_shard
from support.tiny import DEMO_CLIP

from latteclip.config.keys import ClassTextsSection, ClipSection
from latteclip.core import tables
from latteclip.labels.pseudo_label_images import ZeroShotSettings, pseudo_label_images

CLASSES = [f"class {label}" for label in range(6)]
NUMBERS = {"train": range(24), "test": range(24, 42)}
SETTINGS = ZeroShotSettings(
    clip=ClipSection(model=f"local-dir:{DEMO_CLIP}", pretrained=None),
    class_texts=ClassTextsSection(template="a photo of a {}."),
)


@pytest.fixture
def forms(tmp_path):
    """Folders of the three forms of the images, by their kind."""
    for split, numbers in NUMBERS.items():
        samples = labelled(numbers, len(CLASSES), form="PNG")
        pictures = [parts["jpg"] for _, parts in samples]
        labels = [int(parts["cls"]) for _, parts in samples]
        tar_shard(tmp_path / "webdataset" / f"{split}-000000.tar", samples)
        rows = tmp_path / "parquet" / f"{split}.parquet"
        parquet_shard(rows, pictures, labels, CLASSES, rows=5)
        for (key, parts), label in zip(samples, labels, strict=True):
            folder = tmp_path / "folders" / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{key}.jpg").write_bytes(parts["jpg"])
    (tmp_path / "webdataset" / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


def labels_of(forms, kind):
    """By the checksum of each image: its split, class, best classes and features."""
    folder = forms / f"of_{kind}"
    rows, _, _ = index(forms / kind, folder, kind=kind)
    outputs = str(folder / "labels.parquet"), str(folder / "texts.safetensors")
    images = str(folder / "out" / "images.parquet")
    pseudo_label_images(images, SETTINGS, *outputs, device="cpu", threads=1)
    found = tables.read(outputs[0], tables.PSEUDO_LABELS).to_pylist()
    labels = {one["image_id"]: (one["topk_labels"], one["image_features"]) for one in found}
    return {
        row["checksum"]: (row["split"], row["classname"], *labels[row["image_id"]])
        for row in rows
    }


def test_shards_give_what_folders_give(forms):
    found = labels_of(forms, "folders")
    assert len(found) == 42
    assert labels_of(forms, "webdataset") == found
    assert labels_of(forms, "parquet") == found
