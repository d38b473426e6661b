import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.backbones import CLASSNAMES, predictions
from support.tiny import ROOT, write_pictures

from latteclip.cli import main
from latteclip.clip import encode
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.deploy import predict
from latteclip.deploy.predictor import Prediction, Predictor

N = 11
C = len(CLASSNAMES)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 3)


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", N)


def test_what_is_no_regular_file_is_skipped_and_never_waited_for(model, pictures, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    paths = predict.image_paths([str(tmp_path)])
    assert len(paths) == N + 2
    paths.append("n" * 10**6)
    found = Predictor(model, device="cpu", threads=1)(paths)
    assert [one.path for one in found] == paths
    wrong = {Path(one.path).name[:9] for one in found if one.classname is None}
    assert wrong == {"pipe.jpg", "zeros.jpg", "n" * 9}
    assert all(bool(one.error) != bool(one.topk_classnames) for one in found)


def test_paths_folders_pictures_and_arrays_are_classified_alike(model, pictures):
    predictor = Predictor(model, device="cpu", threads=1)
    wanted = [one.topk_scores for one in predictor(pictures)]
    opened = [Image.open(path) for path in pictures]
    arrays = [np.asarray(image) for image in opened]
    folder = Path(pictures[0]).parent
    for given in (folder, [str(folder)], opened, arrays, np.stack(arrays)):
        found = [one.topk_scores for one in predictor(given)]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for one in (pictures[0], Path(pictures[0]), opened[0], arrays[0]):
        [found] = predictor(one)
        assert found.topk_scores == pytest.approx(wanted[0])
    mixed = [arrays[1], "gone.jpg", arrays[0] / 255, None, pictures[2]]
    found = predictor(mixed)
    assert [bool(one.error) for one in found] == [False, True, True, True, False]
    assert found[0].topk_scores == pytest.approx(wanted[1])
    assert found[4].topk_scores == pytest.approx(wanted[2])


def test_the_python_of_the_documents_runs(model, pictures, taken):
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "python.md").read_text()
    first, notebook, in_open_clip, _ = [
        part.split("```")[0] for part in text.split("```python\n")[1:]
    ]
    (taken.folder / "results").mkdir()
    (taken.folder / "results" / "mine").symlink_to(taken.folder)
    (taken.folder / "model").symlink_to(model)
    (taken.folder / "new-photos").symlink_to(Path(pictures[0]).parent)
    features = taken.world.features[taken.training].numpy()
    names = {"image_features": features, "votes_of_a_model": taken.truth}
    exec(first, names)
    assert list(names["labels"]["image_id"]) == taken.ids
    assert [len(one.topk_classnames) for one in names["predictions"]] == [3] * N
    assert len(names["model"].labels_) == len(taken.ids)
    texts = taken.world.texts.numpy()
    exec(notebook, names | {"class_texts": texts, "new_features": features[:5]})
    names = {}
    exec(in_open_clip, names)
    batch = torch.stack([names["preprocess"](Image.open(path)) for path in pictures])
    with torch.no_grad():
        features = names["model"].eval().encode_image(batch, normalize=True)
    labels = names["classifier"].scores(features).argmax(1)  # as its last line says
    found = predictions(model, pictures)
    assert labels.tolist() == [one.topk_labels[0] for one in found]


def run(model, *arguments):
    return main.main(
        ["predict", str(model), *map(str, arguments), "--device", "cpu", "--threads", "1"]
    )


def test_the_table_has_the_predictions(model, pictures, tmp_path, capsys):
    words = [*pictures, "-k", 2]
    assert run(model, *words, "-o", tmp_path / "out.csv") == 0
    assert capsys.readouterr().out == ""
    assert run(model, *words) == 0
    assert capsys.readouterr().out == (tmp_path / "out.csv").read_text()
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = [list(map(tables.from_csv_cell, row)) for row in csv.reader(file)]
    names = ("classname", "probability", "score")
    assert rows[0] == ["path", *names, *(f"{name}_2" for name in names)]
    for row, one in zip(rows[1:], predictions(model, pictures), strict=True):
        assert row[:2] == [one.path, one.classname]
        wanted = [one.probability, one.score]
        assert [*map(float, row[2:4])] == pytest.approx(wanted, abs=1e-6)
    assert run(model, pictures[0], "-k", 10**12) == 0
    assert capsys.readouterr().out.partition("\n")[0].endswith(f"score_{C}")


def test_a_folder_of_broken_images_alone_is_a_table_without_rows(model, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    assert run(model, tmp_path) == 3
    printed = capsys.readouterr()
    assert "a.jpg" in printed.err and printed.out.count("\n") == 1


@pytest.mark.parametrize("name", ["out.parquet", "folder.csv"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path, capsys, name
):
    (tmp_path / "folder.csv").mkdir()
    assert run(tmp_path / "no_model", tmp_path, "-o", tmp_path / name) == 2
    printed = capsys.readouterr()
    assert name in printed.err
    assert printed.out == ""


# --- words, and what is printed ------------------------------------------------------------------


def test_words_name_images_once_and_one_that_names_none_is_refused(tmp_path, monkeypatch):
    for name in ("a.jpg", "deep/er/b.PNG", "deep/c.webp", "deep/notes.txt", "empty/x.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    found = ["deep/c.webp", "deep/er/b.PNG", "a.jpg"]
    assert predict.image_paths(["deep", "a.jpg", "deep/c.webp"]) == found
    # Whoever names a file means it.
    assert predict.image_paths(["deep/notes.txt"]) == ["deep/notes.txt"]
    for word in ("b.jpg", "empty"):
        with pytest.raises(UserError, match=word):
            predict.image_paths(["a.jpg", word])


def test_a_terminal_gets_no_control_characters(monkeypatch, capsys):
    name = "a\x1b]0;title\x07.png"
    row = Prediction(name, [0], ["d\x07ots"], [0.5], [0.9]).cells()
    columns = predict.columns(1, unknown=False, abstain=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    predict.write_csv(None, columns, iter([row]))
    printed = capsys.readouterr().out
    assert r"a\x1b]0;title\x07.png,d\x07ots,0.900000,0.500000" in printed
    assert "\x1b" not in printed and "\x07" not in printed
