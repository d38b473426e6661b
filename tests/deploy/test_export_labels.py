import csv
import json
import os
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import records
from support.shards import parquet_shard, tar_shard
from support.taken import CLASSNAMES, Taken, runner_up

from latteclip.cli import main
from latteclip.config.sections.split import SplitSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.metadata import IndexMetadata
from latteclip.data.images import open_rgb
from latteclip.data.splits import read_split
from latteclip.deploy import label_table
from latteclip.deploy.export_labels import export_labels, sanitized
from latteclip.deploy.label_table import LabelsMetadata
from latteclip.labels.fusion_report import PersonAnswers


@pytest.fixture
def taken(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    monkeypatch.chdir(tmp_path / "made")
    return Taken(tmp_path / "made")


def rows(taken):
    return label_table.read(taken.folder)[0].to_pylist()


def test_each_label_comes_with_what_is_known_of_it(taken):
    found = rows(taken)
    assert [row["image_id"] for row in found] == taken.ids  # none of the test split
    assert [row["label"] for row in found] == [CLASSNAMES[label] for label in taken.fused]
    assert [row["runner_up"] for row in found] == runner_up(taken)
    np.testing.assert_allclose([row["probability"] for row in found], taken.confidence)
    for number, row in enumerate(found):
        silent = number % 9 == 0
        assert row["caption_label"] == (None if silent else CLASSNAMES[taken.truth[number]])
        assert row["caption_confidence"] == (None if silent else 0.75)
        assert row["caption"] == f'a "{number}",\nand more'
        assert (row["image_prototypes"], row["lmm_label"], row["answered"]) == (
            None,
            None,
            None,
        )
        assert row["label"] == row["fused_label"]
        assert row["zero_shot"] == CLASSNAMES[0]  # as the made pseudo-labels are
    unknown = tables.read("unknown.parquet", tables.UNKNOWN)
    names = {
        "is_unknown": "is_unknown",
        "unknown_score": "score",
        "unknown_score_by_captioner": "captioner_score",
    }
    for column, name in names.items():
        wanted = unknown[name].to_pylist()
        assert [row[column] for row in found] == [wanted[i] for i in taken.training]


def test_answers_are_the_labels_and_enough_of_them_calibrate(taken):
    before = {row["image_id"]: row for row in rows(taken)}
    answers = taken.answer(20)
    found = {row["image_id"]: row for row in rows(taken)}
    for name, row in found.items():
        one = answers.get(name)
        for column in ("fused_label", "probability"):
            assert row[column] == before[name][column]
        if one is not None and one.kind == "class":
            assert row["label"] == row["answered"] == one.classname
        else:
            assert row["label"] == (
                None if one and one.kind == "none" else row["fused_label"]
            )
    said = Counter(row["answered"] for row in found.values())
    assert (said["none of these"], said[None]) == (1, 70)
    right = dict(zip(taken.ids, taken.fused == taken.truth, strict=True))
    share = np.mean([right[name] for name in taken.answer(70)])
    table, described = label_table.read(taken.folder)
    assert described.calibration.answers == 70
    means = [np.mean([row["probability"] for row in before.values()])]
    means.append(np.mean(table["probability"].to_numpy()))
    assert abs(means[1] - share) < abs(means[0] - share) or abs(means[1] - share) < 0.1


def test_csv_and_parquet_hold_the_same(taken, tmp_path):
    taken.answer(60)
    for form in ("csv", "parquet"):
        export_labels(str(taken.folder), form, str(tmp_path / form))
    table = pq.read_table(tmp_path / "parquet")
    with (tmp_path / "csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert table.column_names == list(read[0])
    for one, other in zip(table.to_pylist(), read, strict=True):
        for name, value in one.items():
            if isinstance(value, float):
                assert float(other[name]) == pytest.approx(value, abs=1e-6)
            else:
                text = str(value).lower() if isinstance(value, bool) else value
                assert tables.from_csv_cell(other[name]) == ("" if value is None else text)
    described = tables.read_metadata(tmp_path / "parquet", LabelsMetadata)
    assert described.calibration.answers == 60
    assert described.classnames == CLASSNAMES


# --- read by those whom the formats are for ------------------------------------------------------


def test_tasks_are_as_label_studio_documents_them(taken, tmp_path):
    """https://labelstud.io/guide/predictions and .../guide/storage (local files)."""
    answers = taken.answer(20)
    said = export_labels(str(taken.folder), "label-studio", str(tmp_path / "tasks"))
    assert "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/" in said
    interface = xml.etree.ElementTree.parse(tmp_path / "tasks" / "config.xml").getroot()
    choices, image = interface.find("Choices"), interface.find("Image")
    assert [choice.get("value") for choice in choices] == CLASSNAMES
    assert image.get("value") == "$image"
    for task, row in zip(
        json.loads((tmp_path / "tasks" / "tasks.json").read_text()),
        rows(taken),
        strict=True,
    ):
        kind = answers[row["image_id"]].kind if row["image_id"] in answers else None
        found = [
            part["result"][0]["value"]["choices"] for part in task.get("annotations", [])
        ]
        assert found == ([[row["answered"]]] if kind == "class" else [])
        if kind == "none":
            assert "predictions" not in task
            continue
        (prediction,) = task["predictions"]
        (result,) = prediction["result"]
        place = quote(str(Path(row["path"]).absolute())[1:])
        assert task["data"]["image"] == f"/data/local-files/?d={place}"
        assert (result["from_name"], result["to_name"]) == (
            choices.get("name"),
            image.get("name"),
        )
        assert result["type"] == "choices"
        assert result["value"]["choices"] == [row["fused_label"]]
        assert prediction["score"] == pytest.approx(row["probability"])
        assert prediction["model_version"].endswith("uncalibrated")


def test_class_names_are_such_as_xml_and_file_systems_hold(taken, tmp_path):
    """The table of the image folder has a name that a class may have as well."""
    others = {"a/b": "labels.csv", "A:b": "bell\x07", "con": "\ufffe and\ttab"}
    taken.rename([others.get(name, name) for name in CLASSNAMES])
    export_labels(str(taken.folder), "label-studio", str(tmp_path / "tasks"))
    interface = xml.etree.ElementTree.parse(tmp_path / "tasks" / "config.xml").getroot()
    choices = {choice.get("value") for choice in interface.find("Choices")}
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text())
    results = [task["predictions"][0]["result"][0] for task in tasks]
    assert {result["value"]["choices"][0] for result in results} == choices
    assert choices >= {"labels.csv", "bell\\x07", "\\ufffe and\ttab"}
    export_labels(str(taken.folder), "imagefolder", str(tmp_path / "folder"))
    assert (tmp_path / "folder" / "labels.csv").is_file()
    assert len([path for path in (tmp_path / "folder").iterdir() if path.is_dir()]) == len(
        choices
    )


def folder_of(label):
    """As CLASSNAMES are spelt in a file system."""
    names = ["a_b", "A_b_2", "_con", "_b_&amp;_'", "_=2+3", "plain"]
    return names[CLASSNAMES.index(label)]


@pytest.mark.parametrize("copy", [False, True])
def test_torchvision_reads_the_image_folder(taken, tmp_path, copy):
    datasets = pytest.importorskip("torchvision.datasets")
    output = tmp_path / "folder"
    export_labels(str(taken.folder), "imagefolder", str(output), copy=copy)
    read = datasets.ImageFolder(output)
    assert len(read) == len(taken.ids)
    wanted = {row["path"]: row["label"] for row in rows(taken)}
    for path, label in read.samples:
        assert os.path.islink(path) != copy
        name = os.path.basename(path)
        assert read.classes[label] == folder_of(wanted[name])
        assert Path(path).read_bytes() == (taken.folder / name).read_bytes()
    with (output / "labels.csv").open(newline="") as file:
        named = {row["file"]: row["image_id"] for row in csv.DictReader(file)}
    found = {
        os.path.relpath(path, output): os.path.basename(path) for path, _ in read.samples
    }
    assert named == found


def test_what_torchvision_would_pass_over_is_converted(taken, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    others = {0: ".heic", 1: ".gif", 2: ".avif", 3: ".GIF", 4: ""}
    for row, suffix in others.items():
        path = Path(taken.names[row])
        form = {".heic": "HEIF", ".avif": "AVIF", "": "PNG"}.get(suffix, "GIF")
        Image.open(path).save(path.with_suffix(suffix), form)
        path.unlink()
    names = [
        str(Path(n).with_suffix(others.get(row, ".png")))
        for row, n in enumerate(taken.names)
    ]
    with_paths(names)
    output = tmp_path / "folder"
    export_labels(str(taken.folder), "imagefolder", str(output))
    read = datasets.ImageFolder(output)
    assert len(read) == len(taken.ids)
    with (output / "labels.csv").open(newline="") as file:
        named = {row["file"]: row["path"] for row in csv.DictReader(file)}
    for path, _ in read.samples:
        source = named[os.path.relpath(path, output)]
        if Path(source).suffix == ".png":
            assert Path(path).read_bytes() == Path(source).read_bytes()
        else:
            difference = np.asarray(open_rgb(path), int) - np.asarray(open_rgb(source), int)
            assert abs(difference).mean() < 6  # of 255, in pictures of noise


# --- whose image goes where ----------------------------------------------------------------------


def test_answers_decide_the_folder_which_has_the_name_that_the_dataset_writes(
    taken, tmp_path
):
    written = {"plain": "T-Shirt", "con": "Con"}
    table = tables.read("images.parquet", tables.IMAGES)
    columns = {name: table[name] for name in table.column_names}
    tables.write(
        "images.parquet", columns, tables.IMAGES, IndexMetadata(CLASSNAMES, written)
    )
    answers, output = taken.answer(60), tmp_path / "folder"
    export_labels(str(taken.folder), "imagefolder", str(output))
    with (output / "labels.csv").open(newline="") as file:
        found = {
            row["image_id"]: {k: tables.from_csv_cell(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        }
    placed = {path.name: path.parent.name for path in output.glob("*/*")}
    for name, one in answers.items():
        if one.kind == "class":
            wanted = written.get(one.classname, one.classname)
            assert found[name]["label"] == found[name]["answered"] == wanted
            folder = {"T-Shirt": "T-Shirt", "Con": "_Con"}.get(wanted) or folder_of(wanted)
            assert placed[name] == folder
    for column in ("label", "fused_label", "runner_up", "zero_shot", "caption_label"):
        assert not {row[column] for row in found.values()} & set(written)
    none = [name for name, one in answers.items() if one.kind == "none"]
    assert set(placed) == set(taken.ids) - set(none)


def with_duplicates(taken, sets):
    rows = sorted((i, number) for number, images in enumerate(sets) for i in images)
    columns = {
        "image_id": ["a test image", *(taken.ids[i] for i, _ in rows)],
        "set": [0, *(number for _, number in rows)],
    }
    tables.write("duplicates.parquet", columns, tables.DUPLICATES)


def test_of_images_that_show_one_picture_the_first_or_an_answered_one_remains(taken):
    taken.write_report(answers=PersonAnswers({taken.ids[4]: CLASSNAMES[0]}))
    with_duplicates(taken, [(0, 1, 2), (3, 4, 5)])
    found = [row["duplicate_of"] for row in rows(taken)][:7]
    first, answered = taken.ids[0], taken.ids[4]
    assert found == [None, first, first, answered, None, answered, None]


@pytest.mark.parametrize("form", ["csv", "imagefolder"])
def test_unknown_images_and_duplicates_are_counted_and_left_out_on_demand(
    taken, tmp_path, form
):
    with_duplicates(taken, [(0, 1, 2)])
    unknown = {row["image_id"] for row in rows(taken) if row["is_unknown"]}
    assert unknown
    words = ["labels", "export", str(taken.folder), "--format", form, "--output"]
    said = export_labels(str(taken.folder), form, str(tmp_path / "all"))
    assert "Nobody has checked is_unknown" in said
    assert "--leave-out unknown" in said and "--leave-out duplicates" in said
    assert (
        main.main([*words, str(tmp_path / "some"), "--leave-out", "unknown", "duplicates"])
        == 0
    )
    table = tmp_path / "some" / ("labels.csv" if form == "imagefolder" else "")
    with table.open(newline="") as file:
        left = {row["image_id"] for row in csv.DictReader(file)}
    assert left == set(taken.ids) - unknown - set(taken.ids[1:3])


def with_paths(paths):
    """Let the images of the index lie elsewhere."""
    table = pq.read_table("images.parquet")
    columns = {name: table[name] for name in table.column_names} | {"path": paths}
    tables.write("images.parquet", columns, tables.IMAGES, IndexMetadata(CLASSNAMES))


def test_images_of_one_name_get_numbers(taken, tmp_path):
    taken.fused[:2] = 5
    taken.write()
    for name, part in zip(taken.names, ("one", "two"), strict=False):
        (taken.folder / part).mkdir()
        (taken.folder / name).rename(taken.folder / part / "same.png")
    with_paths(["one/same.png", "two/same.png", *taken.names[2:]])
    export_labels(str(taken.folder), "imagefolder", str(tmp_path / "folder"))
    assert os.readlink(tmp_path / "folder/plain/same.png").endswith("one/same.png")
    assert os.readlink(tmp_path / "folder/plain/same_2.png").endswith("two/same.png")


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_images_in_shards_are_copied_out(taken, tmp_path, kind):
    contents = [(taken.folder / name).read_bytes() for name in taken.names]
    if kind == "parquet":
        parquet_shard(Path("d", "a.parquet"), contents, [0] * len(contents), ["a", "b"])
    else:
        samples = [(str(n), {"png": content}) for n, content in enumerate(contents)]
        tar_shard(Path("d", "a.tar"), samples)
        Path("d", "classes.txt").write_text("a\nb")
    _, split = read_split(Path("d"), SplitSection(kind=kind))
    with_paths([f"d/{item.path}" for item in split.items])
    with pytest.raises(UserError, match="--copy"):
        export_labels(".", "imagefolder", str(tmp_path / "links"))
    with pytest.raises(UserError, match="Label Studio"):
        export_labels(".", "label-studio", str(tmp_path / "tasks"))
    assert not (tmp_path / "links").exists() and not (tmp_path / "tasks").exists()
    export_labels(".", "imagefolder", str(tmp_path / "copies"), copy=True)
    found = {path.read_bytes() for path in (tmp_path / "copies").rglob("*.png")}
    assert found == {contents[row] for row in taken.training}
    shard = Path("d", f"a.{'parquet' if kind == 'parquet' else 'tar'}")
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(UserError, match=str(shard)):
        export_labels(".", "imagefolder", str(tmp_path / "half"), copy=True)
    assert not (tmp_path / "half").exists()


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["label-studio", "imagefolder", "csv", "parquet"])
def test_a_folder_with_content_is_never_replaced(taken, tmp_path, form):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "kept").write_text("mine")
    with pytest.raises(UserError, match="mine"):
        export_labels(str(taken.folder), form, str(output))
    assert [path.name for path in output.iterdir()] == ["kept"]


def test_an_image_that_vanished_leaves_nothing_behind(taken, tmp_path):
    (taken.folder / taken.ids[3]).unlink()
    with pytest.raises(UserError, match=taken.ids[3]):
        export_labels(str(taken.folder), "imagefolder", str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


def test_labels_that_are_not_made_yet_are_asked_for(taken, tmp_path):
    (taken.folder / "fused_labels.parquet").unlink()
    with pytest.raises(UserError, match="labels --config dataset=made"):
        export_labels(str(taken.folder), "csv", str(tmp_path / "x.csv"))


# --- file names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("f-16 a/b", "f-16 a_b"),
        ("..", "_"),
        (".hidden", "_hidden"),
        ("con", "_con"),
        ("-rf", "_-rf"),
        ("a\n?b", "a__b"),
        ("end. ", "end"),
    ],
)
def test_a_name_is_one_that_every_system_takes(name, wanted):
    assert sanitized(name) == wanted


@pytest.mark.parametrize("name", ["ü" * 300 + ".png", "." + "y" * 400])
def test_a_long_name_is_cut_and_keeps_its_suffix(name):
    found = sanitized(name)
    assert len(found.encode()) <= 200
    assert found.endswith(".png") == name.endswith(".png")


# --- guarantees ----------------------------------------------------------------------------------


def check(taken, n):
    """Write answers of `latteclip teach` into the labels: n of them check."""
    right = (taken.fused == taken.truth)[:n].tolist()
    checked = records.checked(taken.ids[:n], taken.confidence[:n].tolist(), right)
    images = {taken.ids[row]: CLASSNAMES[taken.truth[row]] for row in range(n)}
    images[taken.ids[n]] = None
    taken.write_report(answers=PersonAnswers(images, checked))


@pytest.mark.parametrize("promise", [{"max_error": 0.5}, {"false_discovery": 0.3}], ids=str)
def test_answers_that_teach_are_the_labels_and_guarantee_others(taken, promise):
    check(taken, 60)
    said = export_labels(str(taken.folder), "parquet", "labels.parquet", **promise)
    table = pq.read_table("labels.parquet").to_pydict()
    assert table["label"][:61] == [*(CLASSNAMES[c] for c in taken.truth[:60]), None]
    assert table["answered"][59:62] == [CLASSNAMES[taken.truth[59]], "none of these", None]
    assert table["accepted"][:61] == [True] * 61
    assert f"{sum(table['accepted'])} of {len(taken.ids)} labels are accepted" in said
    for accepted, guarantee in zip(table["accepted"], table["guarantee"], strict=True):
        assert (guarantee is None) is not accepted


def test_folders_hold_the_labels_that_are_accepted(taken):
    check(taken, 60)
    said = export_labels(str(taken.folder), "csv", "labels.csv", max_error=0.5)
    accepted = pd.read_csv("labels.csv").query("accepted")
    export_labels(str(taken.folder), "imagefolder", "folder", max_error=0.5)
    assert f"{len(accepted)} of {len(taken.ids)} labels are accepted" in said
    linked = [path for path in Path("folder").rglob("*") if path.suffix == ".png"]
    assert len(linked) == accepted["label"].notna().sum() < len(taken.ids)


@pytest.mark.parametrize("checking", [30, 0])
def test_too_few_answers_say_how_many_it_takes(taken, checking):
    if checking:
        check(taken, checking)
    with pytest.raises(UserError, match="59"):
        export_labels(str(taken.folder), "csv", "labels.csv", max_error=0.05)
    for promise in ({"max_error": 0.001}, {"false_discovery": 0.001}):  # of 90 images
        with pytest.raises(UserError, match=r"out of reach.*0\.0(33|34|12|65|23)"):
            export_labels(str(taken.folder), "csv", "labels.csv", **promise)


def test_the_library_datasets_reads_the_image_folder(taken, tmp_path):
    """As docs/photographs.md says."""
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    export_labels(str(taken.folder), "imagefolder", str(out), copy=True)
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    names = found.features["label"].names
    placed = Counter(path.parent.name for path in out.glob("*/*"))
    assert Counter(names[label] for label in found["label"]) == placed
