"""Each of the ten datasets in its official layout, small, served from 127.0.0.1."""

import json

import pytest
import yaml
from support.tiny import ROOT, SHARED
from support.web import Host, jpeg, sha256, tar, zipped

from latteclip.cli import main
from latteclip.config import stage_params
from latteclip.config.configuration import Configuration, as_json
from latteclip.config.layers import merge
from latteclip.core import tables

COOP_SPLITS = SHARED / "data" / "coop_splits"
# key -> key of classnames.json, archive, how it is packed, folder of the images in it
TEN = {
    "caltech101": ("caltech101", "caltech-101.zip", "nested", "101_ObjectCategories"),
    "dtd": ("dtd", "dtd-r1.0.1.tar.gz", "tar", "dtd/images"),
    "eurosat": ("eurosat", "EuroSAT.zip", "zip", "2750"),
    "fgvc_aircraft": (
        "fgvc_aircraft",
        "fgvc-aircraft-2013b.tar.gz",
        "tar",
        "fgvc-aircraft-2013b/data/images",
    ),
    "flowers102": ("flower102", "102flowers.tgz", "tar", "jpg"),
    "food101": ("food101", "food-101.tar.gz", "tar", "food-101/images"),
    "oxford_pets": ("oxford_pets", "images.tar.gz", "tar", "images"),
    "stanford_cars": ("stanford_cars", "stanford_cars.zip", "zip", "stanford_cars"),
    "sun397": ("sun397", "SUN397.tar.gz", "tar", "SUN397"),
    "ucf101": ("ucf101", "UCF-101-midframes.zip", "zip", "UCF-101-midframes"),
}
# As DATASETS.md has them: train with val, test, epochs, warm-up steps, class template.
FACTS = {
    "caltech101": (5777, 2465, 50, 10, "a photo of a {}."),
    "dtd": (3948, 1692, 100, 10, "{} texture."),
    "eurosat": (18900, 8100, 15, 40, "a photo of a {}."),
    "fgvc_aircraft": (6667, 3333, 50, 15, "a photo of a {}, a type of aircraft."),
    "flowers102": (5726, 2463, 50, 12, "a photo of a {}, a type of flower."),
    "food101": (70700, 30300, 15, 140, "a photo of a {}, a type of food."),
    "oxford_pets": (3680, 3669, 100, 10, "a photo of a {}."),
    "stanford_cars": (8144, 8041, 50, 20, "a photo of a {}."),
    "sun397": (19850, 19850, 15, 40, "a photo of a {}."),
    "ucf101": (9537, 3783, 50, 20, "a photo of a person doing {}"),
}


@pytest.fixture
def host():
    with Host().running() as running:
        yield running


def classnames(key):
    if not COOP_SPLITS.is_dir():
        pytest.skip("no splits of CoOp beside the repository (../shared/data/coop_splits)")
    return json.loads((COOP_SPLITS / "classnames.json").read_text())[TEN[key][0]]


def own_file(key):
    """What config/datasets/<key>.yaml says."""
    return yaml.safe_load((ROOT / "config" / "datasets" / f"{key}.yaml").read_text())


def small_split(key, file):
    """A split in CoOp's form with all classes: the real one cut down, where there is one."""
    real = COOP_SPLITS / file
    if not real.is_file():
        names = classnames(key)
        place = "{0[0]}/{0}/sun_{1}.jpg" if key == "sun397" else "{0}/{1}.jpg"
        rows = [[place.format(name, label), label, name] for label, name in enumerate(names)]
        tests = [[place.format(name, 9000 + i), i, name] for i, name in enumerate(names[:5])]
        return {"train": rows, "val": [], "test": tests}
    whole = json.loads(real.read_text())
    first = {}
    for row in whole["train"]:
        first.setdefault(row[1], row)
    return {"train": list(first.values()), "val": whole["val"][:7], "test": whole["test"][:5]}


def aircraft(names):
    """FGVC-Aircraft's own lists, small."""
    train = {f"{label:07}": name for label, name in enumerate(names)}
    test = {f"{9000 + label:07}": name for label, name in enumerate(names[:5])}
    top = "fgvc-aircraft-2013b/data"
    files = {f"{top}/variants.txt": "".join(f"{name}\n" for name in names).encode()}
    for split, images in (("train", train), ("val", {}), ("test", test)):
        lines = "".join(f"{image} {name}\n" for image, name in images.items())
        files[f"{top}/images_variant_{split}.txt"] = lines.encode()
    return files, [f"{image}.jpg" for image in (*train, *test)]


def pack(how, files):
    if how == "nested":
        inner = tar(files)
        return zipped(
            {"caltech-101/101_ObjectCategories.tar.gz": inner, "__MACOSX/._caltech-101": b"x"}
        )
    return zipped(files) if how == "zip" else tar(files)


def serve(key, host):
    """Serve a small dataset; returns the overriding configuration and the ids of its images."""
    _, archive, how, folder = TEN[key]
    values = own_file(key)["datasets"][key]
    files, downloads = {}, {}
    if key == "fgvc_aircraft":
        files, ids = aircraft(classnames(key))
        counts = {"train": len(ids) - 5, "test": 5}
    else:
        split_file = values["split"]["file"]
        split = small_split(key, split_file)
        ids = [row[0] for rows in split.values() for row in rows]
        counts = {"train": len(split["train"] + split["val"]), "test": len(split["test"])}
        downloads[split_file] = json.dumps(split).encode()
    files |= {f"{folder}/{image_id}": jpeg((n % 256, 0, 0)) for n, image_id in enumerate(ids)}
    downloads[archive] = pack(how, files)
    assert set(downloads) == set(values["source"]["downloads"])
    override = {
        name: {"sources": [host.serve(f"/{key}/{name}", content)], "checksum": sha256(content)}
        for name, content in downloads.items()
    }
    changes = {"source": {"downloads": override}, "split": {"counts": counts}}
    return {"datasets": {key: changes}}, ids


def settings_of(key, override):
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    return Configuration(merge(config, own_file(key), override, {"dataset": key}), {})


def run(key, settings):
    """The commands of the rules, here; the exit status of the first that fails."""
    data, results = f"resources/{key}/data", f"results/{key}"
    fetched = as_json(stage_params.download_dataset(settings, key))
    download = ["--settings", fetched, "--log", f"{results}/logs/d.log"]
    index = ["--settings", as_json(settings.dataset(key)["split"]), "--threads", "1"]
    outputs = ["--output", f"{results}/images.parquet", "--corrupt", f"{results}/corrupt.csv"]
    outputs += ["--fingerprints", f"{results}/fingerprints.parquet"]
    return main.main(
        ["download-dataset", "--dataset", key, "--output", data, *download]
    ) or main.main(["index-images", "--folder", data, *index, *outputs])


def read_index(root, key):
    table, metadata = tables.read(root / "results" / key / "images.parquet", tables.IMAGES)
    return table.to_pylist(), metadata["classnames"]


def cleaned(key):
    """Class names at use, by the words of DATASETS.md."""
    names = [name.lower().replace("_", " ") for name in classnames(key)]
    if key in ("stanford_cars", "ucf101"):
        names = [name.replace(".", " ") for name in names]
    return [" ".join(name.split()) for name in names]


@pytest.mark.parametrize("key", TEN)
def test_each_of_the_ten_is_fetched_unpacked_and_indexed(key, host, tmp_path, monkeypatch):
    override, ids = serve(key, host)
    settings = settings_of(key, override)
    monkeypatch.chdir(tmp_path)
    assert run(key, settings) == 0
    rows, names = read_index(tmp_path, key)
    assert sorted(row["image_id"] for row in rows) == sorted(ids)
    assert names == cleaned(key)
    assert {row["label"] for row in rows} == set(range(len(names)))
    assert all(row["classname"] == names[row["label"]] for row in rows)
    log = (tmp_path / "results" / key / "logs" / "d.log").read_text()
    values = own_file(key)["datasets"][key]
    assert f"licence: {values['licence']}" in log and values["citation"] in log
    assert all(f"{host.url}/{key}/{name} served" in log for name in values["source"]["downloads"])


@pytest.mark.parametrize("key", TEN)
def test_what_the_files_say_is_what_the_paper_says(key):
    values = own_file(key)["datasets"][key]
    train, test, epochs, warmup_steps, template = FACTS[key]
    assert values["split"]["counts"] == {
        "train": train,
        "test": test,
        "classes": len(classnames(key)),
    }
    schedule = {"epochs": epochs, "warmup_steps": warmup_steps, "steps_multiple_of": 3}
    assert values["finetune"] == schedule
    assert values["template"] == template
    assert all(
        text.endswith(" concisely, less than 20 words.") for text in values["prompts"].values()
    )
    assert values["title"] and values["licence"] and values["citation"]


def test_the_checksums_of_the_split_files_are_those_of_the_real_ones():
    classnames("dtd")  # skips where they are not there
    real = {
        name: spec["checksum"]
        for key in TEN
        for name, spec in own_file(key)["datasets"][key]["source"]["downloads"].items()
        if (COOP_SPLITS / name).is_file()
    }
    assert len(real) == 7
    assert real == {name: sha256((COOP_SPLITS / name).read_bytes()) for name in real}


def test_through_snakemake_and_again_after_results_are_removed(checkout, host):
    override, ids = serve("caltech101", host)
    (checkout.root / "over.yaml").write_text(yaml.safe_dump(override | {"dataset": "caltech101"}))
    command = ("--configfile", "over.yaml", "--", "results/caltech101/images.parquet")
    done = checkout.snakemake(*command)
    assert done.returncode == 0, done.stdout
    assert len(read_index(checkout.root, "caltech101")[0]) == len(ids)
    asked = list(host.requests)
    assert checkout.run("rm", "-r", "results").returncode == 0
    done = checkout.snakemake(*command)
    assert done.returncode == 0, done.stdout
    assert len(read_index(checkout.root, "caltech101")[0]) == len(ids)
    assert host.requests == asked


# The list, and the check of what is on the disk.


@pytest.fixture
def place(tmp_path, monkeypatch, host):
    """A folder with the files of all datasets, and EuroSAT downloaded in a small copy."""
    override, _ = serve("eurosat", host)
    assert settings_of("eurosat", override)
    config = tmp_path / "config" / "datasets"
    config.mkdir(parents=True)
    for key in TEN:
        content = own_file(key)
        if key == "eurosat":
            content = merge(content, override)
        (config / f"{key}.yaml").write_text(yaml.safe_dump(content))
    settings = settings_of("eurosat", override)
    monkeypatch.chdir(tmp_path)
    assert run("eurosat", settings) == 0
    return tmp_path


def test_the_list_has_the_facts_of_each(place, capsys):
    assert main.main(["datasets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert set(rows) == {"key", "demo", *TEN}
    assert "3948" in rows["dtd"] and "research only" in rows["dtd"] and " no " in rows["dtd"]
    assert " yes " in rows["eurosat"]
    assert any("Cimpoi" in line for line in lines)


def test_a_changed_download_is_found(place, capsys):
    (place / "resources/eurosat/downloads/EuroSAT.zip").write_bytes(b"rotten")
    assert main.main(["datasets", "check", "eurosat"]) == 2
    assert "EuroSAT.zip has a wrong checksum" in capsys.readouterr().err
    assert (place / "resources/eurosat/downloads/EuroSAT.zip").is_file()
