import csv
import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.special import expit, logit
from support.shards import parquet_shard, tar_shard
from support.worlds import CLASSNAMES

from latteclip.cli import main
from latteclip.core import tables
from latteclip.core.answers import ANSWERS, CHECK, PLAN_OF_TEACHING, Answer, SavedAnswers
from latteclip.core.errors import UserError
from latteclip.core.files import write_json
from latteclip.core.tables import IndexMetadata
from latteclip.data.splits import IndexSettings, read_split
from latteclip.deploy import label_table
from latteclip.deploy.export_labels import IMAGE_FOLDER_SUFFIXES, labels, unique_filenames
from latteclip.deploy.label_table import LabelsMetadata, calibrate


def read_csv(path):
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    return [{k: tables.from_csv_cell(v) for k, v in line.items()} for line in lines]


def test_csv_and_parquet_have_the_same_values_and_no_formula(taken, tmp_path):
    taken.answer(60)
    for form in ("csv", "parquet"):
        labels("export", str(taken.folder), form, str(tmp_path / form))
    table = pq.read_table(tmp_path / "parquet")
    lines = read_csv(tmp_path / "csv")
    assert table.column_names == list(lines[0])
    for one, other in zip(table.to_pylist(), lines, strict=True):
        for name, value in one.items():
            if isinstance(value, float):
                assert float(other[name]) == pytest.approx(value, abs=1e-6)
            else:
                text = str(value).lower() if isinstance(value, bool) else value
                assert other[name] == ("" if value is None else text)
    assert any("=2+3" in row.values() for row in table.to_pylist())
    assert ",=2+3," not in (tmp_path / "csv").read_text()
    described = tables.read_metadata(tmp_path / "parquet", LabelsMetadata)
    assert described.calibration.answers == 60
    assert described.classnames == CLASSNAMES


def test_labels_are_exported_without_what_models_need(taken, tmp_path):
    taken.answer(20)
    script = f"""if True:
        import sys
        from latteclip.cli import main
        for form in ("csv", "parquet", "label-studio", "imagefolder"):
            words = ["labels", "export", {str(taken.folder)!r}, "--format", form]
            assert main.main([*words, "--output", {str(tmp_path)!r} + "/of-" + form]) == 0
        heavy = {{"torch", "torchvision", "transformers", "open_clip", "scipy"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "of-csv").is_file()


def test_image_folders_have_the_suffixes_that_torchvision_reads():
    folder = pytest.importorskip("torchvision.datasets.folder")
    assert set(IMAGE_FOLDER_SUFFIXES) == set(folder.IMG_EXTENSIONS)


def test_labels_of_other_classes_than_those_of_the_index_are_refused(taken):
    """As after a change of the classes, and a run that failed."""
    classes = IndexMetadata(["added", *CLASSNAMES])
    table = tables.read("images.parquet")
    tables.write("images.parquet", table, tables.IMAGES, classes)
    with pytest.raises(UserError, match=r"images\.parquet"):
        label_table.read(taken.folder)


# --- Label Studio --------------------------------------------------------------------------------


def test_tasks_are_as_label_studio_documents_them(taken, tmp_path):
    """https://labelstud.io/guide/predictions and .../guide/storage (local files)."""
    answers = taken.answer(20)
    said = labels("export", str(taken.folder), "label-studio", str(tmp_path / "tasks"))
    assert "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/" in said
    interface = xml.etree.ElementTree.parse(tmp_path / "tasks" / "config.xml").getroot()
    choices, image = interface.find("Choices"), interface.find("Image")
    assert [choice.get("value") for choice in choices] == CLASSNAMES
    assert image.get("value") == "$image"
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text())
    rows = label_table.read(taken.folder)[0].to_pylist()
    for task, row in zip(tasks, rows, strict=True):
        kind = answers[row["image_id"]].kind if row["image_id"] in answers else None
        annotations = [part["result"][0] for part in task.get("annotations", [])]
        found = [result["value"]["choices"] for result in annotations]
        assert found == ([[row["answered"]]] if kind == "class" else [])
        if kind == "none":
            assert "predictions" not in task
            continue
        [prediction] = task["predictions"]
        [result] = prediction["result"]
        place = quote(str(Path(row["path"]).absolute())[1:])
        assert task["data"]["image"] == f"/data/local-files/?d={place}"
        names = (result["from_name"], result["to_name"], result["type"])
        assert names == (choices.get("name"), image.get("name"), "choices")
        assert result["value"]["choices"] == [row["fused_label"]]
        assert prediction["score"] == pytest.approx(row["probability"])
        assert prediction["model_version"].endswith("uncalibrated")


# --- folders of classes --------------------------------------------------------------------------


def folder_of(label):
    """As CLASSNAMES are spelt in a file system."""
    names = ["a_b", "A_b_2", "con", "_b_&amp;_'", "=2+3", "plain"]
    return names[CLASSNAMES.index(label)]


def test_torchvision_and_datasets_read_the_image_folder(taken, tmp_path):
    torchvision = pytest.importorskip("torchvision.datasets")
    hub = pytest.importorskip("datasets")
    output = tmp_path / "folder"
    labels("export", str(taken.folder), "imagefolder", str(output))
    read = torchvision.ImageFolder(output)
    table = label_table.read(taken.folder)[0].to_pylist()
    wanted = {row["path"]: row["label"] for row in table}
    assert len(read) == len(taken.ids)
    found = {}
    for path, label in read.samples:
        name = os.path.basename(path)
        found[os.path.relpath(path, output)] = name
        assert read.classes[label] == folder_of(wanted[name])
        assert os.readlink(path) == str(taken.folder / name)
    listed = read_csv(output / "labels.csv")
    assert {row["file"]: row["image_id"] for row in listed} == found
    place = {"data_dir": str(output), "cache_dir": str(tmp_path / "cache")}
    loaded = hub.load_dataset("imagefolder", split="train", **place)
    assert loaded.features["label"].names == read.classes
    assert sorted(loaded["label"]) == sorted(read.targets)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_images_in_shards_are_copied_out(taken, tmp_path, kind):
    """But a format that ImageFolder ignores is converted."""
    contents = [(taken.folder / name).read_bytes() for name in taken.names]
    gif = io.BytesIO()
    Image.new("RGB", (8, 8)).save(gif, "GIF")
    contents[0] = gif.getvalue()
    if kind == "parquet":
        parquet_shard(Path("d", "a.parquet"), contents, [0] * len(contents), ["a", "b"])
    else:
        samples = [(str(n), {"png": content}) for n, content in enumerate(contents)]
        tar_shard(Path("d", "a.tar"), samples)
        Path("d", "classes.txt").write_text("a\nb")
    split = read_split(Path("d"), IndexSettings(kind=kind))
    index = tables.read("images.parquet").to_pandas()
    index["path"] = [f"d/{item.path}" for item in split.items]
    tables.write("images.parquet", index, tables.IMAGES, IndexMetadata(CLASSNAMES))
    with pytest.raises(UserError, match="Label Studio"):
        labels("export", ".", "label-studio", str(tmp_path / "tasks"))
    assert not (tmp_path / "tasks").exists()
    labels("export", ".", "imagefolder", str(tmp_path / "copies"))
    found = {path.read_bytes() for path in (tmp_path / "copies").rglob("*.png")}
    assert found == {contents[row] for row in taken.training[1:]}
    assert len([*(tmp_path / "copies").rglob("*.jpg")]) == 1
    shard = Path("d", f"a.{'parquet' if kind == 'parquet' else 'tar'}")
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(UserError, match=str(shard)):
        labels("export", ".", "imagefolder", str(tmp_path / "half"))
    assert not (tmp_path / "half").exists()


def test_a_file_has_the_suffix_of_its_format(taken, tmp_path):
    """A HEIC is converted, and a PNG linked by another name; both are called .jpg."""
    index = tables.read(taken.path("images.parquet")).to_pylist()
    heic, png = [row["path"] for row in index if row["split"] == "train"][:2]
    Image.new("RGB", (8, 8)).save(heic, "HEIF")
    Image.new("RGB", (8, 8)).save(png, "PNG")
    rows = [dict(row, path=row["path"].replace(".png", ".jpg")) for row in index]
    for row in index:
        Path(row["path"]).rename(row["path"].replace(".png", ".jpg"))
    metadata = tables.read_metadata(taken.path("images.parquet"), IndexMetadata)
    table = pa.Table.from_pylist(rows, tables.IMAGES)
    tables.write(taken.path("images.parquet"), table, tables.IMAGES, metadata)
    labels("export", str(taken.folder), "imagefolder", str(tmp_path / "out"))
    written = [row["file"] for row in read_csv(tmp_path / "out" / "labels.csv")]
    for name in written:
        with Image.open(tmp_path / "out" / name) as image:
            assert Image.registered_extensions()[Path(name).suffix] == image.format
    assert {Path(name).suffix for name in written} == {".jpg", ".png"}


def test_names_are_files_of_every_system_that_differ_on_macos_and_windows():
    new_name = unique_filenames()
    names = ["caf\u00e9.png", "cafe\u0301.png", "CAF\u00c9.png", "cafe.png"]
    found = [new_name(name).partition("_")[2] for name in names]
    assert found == ["", "2.png", "3.png", ""]
    joined = "\U0001f408\u200d\U0001f984.png"  # one cat, by a joiner
    names = ["f-16 a/b", "..", ".hidden", "a\n?b", "end. ", joined]
    wanted = ["f-16 a_b", "_", "_hidden", "a__b", "end_", joined]
    assert [new_name(name) for name in names] == wanted


# --- what is left out, and what is refused -------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "imagefolder"])
def test_unknown_images_and_duplicates_are_counted_and_left_out_on_demand(
    taken, tmp_path, form
):
    """Where the first image of a set is unknown, another one stays."""
    table = label_table.read(taken.folder)[0].to_pylist()
    unknown = {row["image_id"] for row in table if row["is_unknown"]}
    first, *_ = (row for row, name in enumerate(taken.ids) if name in unknown)
    taken.write_duplicates([(0, 1, 2), (first, 85, 86)])
    words = ["labels", "export", str(taken.folder), "--format", form, "--output"]
    words += [str(tmp_path / "some"), "--leave-out", "unknown", "duplicates"]
    assert main.main(words) == 0
    output = tmp_path / "some" / ("labels.csv" if form == "imagefolder" else "")
    remaining = {row["image_id"] for row in read_csv(output)}
    assert remaining == set(taken.ids) - unknown - {taken.ids[row] for row in (1, 2, 86)}


def test_a_file_named_as_another_format_is_refused(taken):
    with pytest.raises(UserError, match=r"labels\.csv"):
        labels("export", str(taken.folder), "parquet", "labels.csv")


def test_an_image_that_vanished_leaves_nothing_behind(taken, tmp_path):
    (taken.folder / taken.ids[3]).unlink()
    with pytest.raises(UserError, match=taken.ids[3]):
        labels("export", str(taken.folder), "imagefolder", str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


# --- guarantees ----------------------------------------------------------------------------------


def test_answers_are_accepted_and_guarantee_other_labels(taken):
    taken.answer(60)
    said = labels("export", str(taken.folder), "parquet", "labels.parquet", max_error=0.5)
    table = pq.read_table("labels.parquet").to_pydict()
    assert table["accepted"][:60] == [True] * 60
    n = sum(table["accepted"])
    assert f"{n} of {len(taken.ids)} labels are accepted" in said
    labels("export", str(taken.folder), "imagefolder", "folder", max_error=0.5)
    found = list(Path("folder").rglob("*.png"))
    assert len(found) == n - 1 < len(taken.ids)  # one: no class


def test_answers_that_labels_do_not_follow_are_named_and_more_are_asked_for(taken, caplog):
    taken.answer(58)
    answers = [Answer(name, "unsure", phase=CHECK) for name in taken.ids]
    for n, advice in ((60, "--budget 61,"), (90, "larger share of errors.$")):
        saved = SavedAnswers(PLAN_OF_TEACHING, answers[:n]).as_json()
        write_json(taken.folder / ANSWERS, saved)
        with pytest.raises(UserError, match=advice):
            labels("export", str(taken.folder), "csv", "labels.csv", max_error=0.05)
    assert ANSWERS in caplog.text


# --- the table ------------------------------------------------------------------------------------


def rows(taken):
    return label_table.read(taken.folder)[0].to_pylist()


def test_each_label_comes_with_what_is_known_of_it(taken):
    found = rows(taken)
    assert [row["image_id"] for row in found] == taken.ids  # none of the test split
    assert [row["label"] for row in found] == [CLASSNAMES[label] for label in taken.fused]
    np.testing.assert_allclose([row["probability"] for row in found], taken.confidence)
    unknown = tables.read("unknown.parquet")
    unknown = unknown.take(pa.array(taken.training)).to_pylist()
    for number, (row, known) in enumerate(zip(found, unknown, strict=True)):
        silent = number % 9 == 0
        expected = {
            "fused_label": row["label"],
            "caption_label": None if silent else CLASSNAMES[taken.truth[number]],
            "caption_confidence": None if silent else 0.75,
            "caption": f'a "{number}",\nand more',
            "zero_shot": CLASSNAMES[0],  # as the pseudo-labels are
            **dict.fromkeys(["image_prototypes", "lmm_label", "answered"]),
            "is_unknown": known["is_unknown"],
            "unknown_score": known["score"],
        }
        assert {name: row[name] for name in expected} == expected


def test_answers_are_the_labels_and_enough_of_them_calibrate(taken):
    before = rows(taken)
    answers = taken.answer(20)
    for row, earlier in zip(rows(taken), before, strict=True):
        changed = {"label": row["fused_label"], "answered": None}
        if one := answers.get(row["image_id"]):
            word = one.classname or "none of these"
            changed = {"label": one.classname, "answered": word}
        assert row == earlier | changed
    taken.answer(70)
    table, described = label_table.read(taken.folder)
    assert described.calibration.answers == 70
    share = (taken.fused == taken.truth)[:69].sum() / 70
    assert table["probability"].to_numpy()[:70].mean() == pytest.approx(share, abs=0.1)


def test_of_images_that_show_one_picture_the_first_or_an_answered_one_remains(taken):
    taken.write_report(answers={taken.ids[4]: CLASSNAMES[0]})
    taken.write_duplicates([(0, 1, 2), (3, 4, 5)])
    found = label_table.read_labels(taken.folder)["duplicate_of"].tolist()[:7]
    first, answered = taken.ids[0], taken.ids[4]
    assert found == [None, first, first, answered, None, answered, None]


def test_the_correction_is_found():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.05, 0.999, 4000)
    truth = expit(0.5 * logit(probabilities) - 1)  # the probabilities are too high
    found = calibrate([*zip(probabilities, rng.random(4000) < truth, strict=True)])
    np.testing.assert_allclose(found(probabilities), truth, atol=0.05)
    assert found.answers == 4000
