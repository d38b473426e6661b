"""Each of the ten datasets in its official layout, small, served from 127.0.0.1."""

import json
import shutil

import pandas as pd
import pytest
import yaml
from support.shards import picture
from support.tiny import DEMO_CLIP, DEMO_LLAVA, ROOT
from support.web import sha256, tar, zipped

from latteclip.cli import main
from latteclip.config import jobs
from latteclip.config.layers import merge
from latteclip.config.resolve import Run
from latteclip.core import tables
from latteclip.data.download_dataset import DownloadSettings, download_dataset
from latteclip.data.splits import IndexSettings, read_split

AIRCRAFT = "fgvc-aircraft-2013b/data"
# Archive, how it is packed, and folder of the images in it.
TEN = {
    "caltech101": ("caltech-101.zip", "nested", "101_ObjectCategories"),
    "dtd": ("dtd-r1.0.1.tar.gz", "tar", "dtd/images"),
    "eurosat": ("EuroSAT.zip", "zip", "2750"),
    "fgvc_aircraft": ("fgvc-aircraft-2013b.tar.gz", "tar", f"{AIRCRAFT}/images"),
    "flowers102": ("102flowers.tgz", "tar", "jpg"),
    "food101": ("food-101.tar.gz", "tar", "food-101/images"),
    "oxford_pets": ("images.tar.gz", "tar", "images"),
    "stanford_cars": ("stanford_cars.zip", "zip", "stanford_cars"),
    "sun397": ("SUN397.tar.gz", "tar", "SUN397"),
    "ucf101": ("UCF-101-midframes.zip", "zip", "UCF-101-midframes"),
}
NAMES = ["one", "two/b", "three"]
TRAIN = {f"d/{label}.jpg": label for label in range(3)}
TEST = {"d/9.jpg": 1}


def own_file(key):
    """The content of config/datasets/<key>.yaml."""
    return yaml.safe_load((ROOT / "config" / "datasets" / f"{key}.yaml").read_text())


def split_files(key, split):
    """A small split, in the archive or beside it."""
    if key == "fgvc_aircraft":
        files = {"variants": NAMES, "images_variant_val": []}
        for part, images in (("train", TRAIN), ("test", TEST)):
            lines = [f"{name[:-4]} {NAMES[i]}" for name, i in images.items()]
            files[f"images_variant_{part}"] = lines
        return {f"{AIRCRAFT}/{n}.txt": "\n".join(text) for n, text in files.items()}, {}
    rows = [[[name, i, NAMES[i]] for name, i in images.items()] for images in (TRAIN, TEST)]
    content = {"train": rows[0], "val": [], "test": rows[1]}
    return {}, {split["file"]: json.dumps(content).encode()}


def serve(key, host):
    """Serve a small dataset, and return the configuration that overrides its own."""
    archive, how, folder = TEN[key]
    values = own_file(key)["datasets"][key]
    inside, downloads = split_files(key, values["split"])
    files = {name: text.encode() for name, text in inside.items()}
    files |= {f"{folder}/{name}": picture(n) for n, name in enumerate((*TRAIN, *TEST))}
    packed = zipped(files) if how == "zip" else tar(files)
    if how == "nested":
        nested = {
            "caltech-101/101_ObjectCategories.tar.gz": packed,
            "__MACOSX/._caltech": b"x",
        }
        packed = zipped(nested)
    downloads[archive] = packed
    assert set(downloads) == set(values["source"]["downloads"])
    override = {
        name: {
            "sources": [host.serve(f"/{key}/{name}", content)],
            "checksum": sha256(content),
        }
        for name, content in downloads.items()
    }
    split = {"counts": {"train": 3, "test": 1, "classes": 3}}
    return {"datasets": {key: {"source": {"downloads": override}, "split": split}}}


def configured(key, override):
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    return Run(merge(config, own_file(key), override, {"dataset": key}), {}).datasets[0]


@pytest.mark.parametrize("key", TEN)
def test_each_of_the_ten_is_fetched_unpacked_and_read(key, host, tmp_path, caplog):
    caplog.set_level("INFO")
    found = configured(key, serve(key, host))
    of_rule = jobs.sections(found, "source", "title", "licence", "citation")
    given = DownloadSettings(**of_rule, kind=found.keys.split.kind)
    download_dataset(key, given, str(tmp_path / "data"))
    settings = IndexSettings(**dict(found.keys.split), class_names=found.keys.class_names)
    split = read_split(tmp_path / "data", settings)
    assert {item.image_id: item.label for item in split.items} == TRAIN | TEST
    assert all((split.folder / item.path).is_file() for item in split.items)
    assert split.names == NAMES
    values = own_file(key)["datasets"][key]
    assert f"licence: {values['licence']}" in caplog.text
    assert values["citation"] in caplog.text
    for name in values["source"]["downloads"]:
        assert f"{host.url}/{key}/{name} served" in caplog.text


def test_through_snakemake_and_again_after_results_are_removed(checkout, host):
    override = serve("caltech101", host) | {"dataset": "caltech101"}
    (checkout.root / "over.yaml").write_text(yaml.safe_dump(override))
    index = "results/caltech101/images.parquet"
    for _ in range(2):
        done = checkout.snakemake("--configfile", "over.yaml", "--", index)
        assert done.returncode == 0, done.stdout
        rows = tables.read(checkout.root / index).to_pylist()
        assert {row["image_id"]: row["label"] for row in rows} == TRAIN | TEST
        assert len(host.requests) == 2
        shutil.rmtree(checkout.root / "results")


# In place of the paper's, which are gigabytes, and an epoch of its schedules.
TINY = {
    "clip": {"model": f"local-dir:{DEMO_CLIP}", "pretrained": None},
    "captioner": {
        **{"engine": "transformers", "model": str(DEMO_LLAVA), "dtype": "float32"},
        **{"max_new_tokens": 4, "max_model_len": 256},
    },
    "finetune": {"epochs": 1, "warmup_steps": 1},
}


@pytest.mark.slow
def test_the_study_of_the_paper_is_one_command(checkout, host):
    """All ten without training, and the method of the paper with its captions on one of them."""
    figure = {"method": "zero_shot", "column": "mean", "value": 101, "source": "Table 9"}
    override = merge(
        TINY, {"table": {"published": [figure]}}, *(serve(key, host) for key in TEN)
    )
    (checkout.root / "tiny.yaml").write_text(yaml.safe_dump(override))
    files = ("--configfile", "config/study.yaml", "tiny.yaml", "--config")
    table = checkout.root / "results" / "study.md"
    checkout.ran(*files, "method=zero_shot", "--", "results/study.md")
    assert "- differs: zero_shot, mean: " in table.read_text()
    assert set(pd.read_csv(table.with_suffix(".csv"))["dataset"]) == {*TEN}
    checkout.ran(*files, "method=latteclip", "dataset=flowers102", "--", "results/study.md")
    rows = pd.read_csv(table.with_suffix(".csv")).to_dict("records")
    assert [(row["dataset"], row["method"], row["seeds"]) for row in rows] == [
        ("flowers102", "latteclip", 3)
    ]
    captions = checkout.root / "results" / "flowers102" / "captions"
    asked = {row["prompt"] for row in tables.read(captions / "images.parquet").to_pylist()}
    assert asked <= {
        f"Describe the {name} flower in the photo concisely, less than 20 words."
        for name in NAMES
    }


def test_the_list_has_the_facts_of_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resources" / "eurosat" / "data").mkdir(parents=True)
    assert main.main(["datasets"]) == 0
    table, _, cited = capsys.readouterr().out.partition("\n\n")
    rows = {line.split()[0]: line for line in table.splitlines()}
    assert set(rows) == {"key", "demo", *TEN}
    assert all(fact in rows["dtd"] for fact in ("3948", "1692", " no ", "research only"))
    assert " yes " in rows["eurosat"] and "dtd: Cimpoi" in cited
