import contextlib
import csv
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.backbones import CLASSNAMES, NAMES, predictions
from support.tiny import ROOT, write_pictures

from latteclip.cli import main
from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.deploy import predict

N = 11
C = len(CLASSNAMES)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 3)


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", N)


@pytest.fixture
def broken(tmp_path, pictures):
    """The pictures, of which the one in place 4 cannot be decoded."""
    path = Path(pictures[4])
    path.write_bytes(path.read_bytes()[:100])
    return pictures


def expected(model, path, demo_clip):
    """(scores, probabilities) over all classes of one image, from the definitions."""
    classifier, _ = load_classifier(model / clips.CLASSIFIER)
    with torch.no_grad():
        feature = demo_clip.model.encode_image(
            demo_clip.preprocess(Image.open(path))[None]
        )[0]
    feature = feature / feature.norm()
    pairs = zip(classifier.weights, classifier.bias, strict=True)
    scores = [float(feature @ row) + float(own) for row, own in pairs]
    scale = demo_clip.model.logit_scale.exp().item()
    powers = [math.exp(scale * (score - max(scores))) for score in scores]
    return scores, [power / sum(powers) for power in powers]


def test_three_lines_from_python(model, pictures, demo_clip):
    classifier = predict.Predictor(model, device="cpu", threads=1)
    assert [one.path for one in classifier(Path(pictures[0]).parent)] == pictures
    [first] = classifier(pictures[0], topk=4)
    for one in [first, *classifier(pictures[1:4], topk=4)]:
        scores, probabilities = expected(model, one.path, demo_clip)
        order = sorted(range(C), key=lambda c, s=scores: -s[c])[:4]
        assert one.topk_labels == order
        assert one.topk_classnames == [NAMES[c] for c in order]
        assert one.classname == NAMES[order[0]]
        assert one.topk_scores == pytest.approx([scores[c] for c in order], abs=1e-5)
        assert one.topk_probabilities == pytest.approx(
            [probabilities[c] for c in order], abs=1e-4
        )


def test_what_is_no_regular_file_is_skipped_and_never_waited_for(
    model, pictures, tmp_path, caplog
):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    paths = predict.image_paths([str(tmp_path)])
    assert len(paths) == N + 2
    paths.append("n" * 10**6)
    assert len(predict.Predictor(model, device="cpu", threads=1)(paths)) == N
    assert len(caplog.text) < 10_000
    assert "pipe.jpg" in caplog.text and "zeros.jpg" in caplog.text


def test_the_python_of_the_documents_runs(model, pictures, taken):
    page = (ROOT / "docs" / "python.md").read_text()
    first, *blocks = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    assert first in (ROOT / "README.md").read_text()
    [in_open_clip] = [block for block in blocks if "import open_clip" in block]
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
        assert [*map(float, row[2:4])] == pytest.approx(
            [one.probability, one.score], abs=1e-6
        )
    assert run(model, pictures[0], "-k", 10**12) == 0
    assert capsys.readouterr().out.partition("\n")[0].endswith(f"score_{C}")


def test_broken_images_are_reported_and_skipped(model, broken, tmp_path, capsys):
    classifier = predict.Predictor(model, device="cpu", threads=1)
    good = broken[:4] + broken[5:]
    for one, other in zip(classifier(broken), classifier(good), strict=True):
        assert (one.path, one.topk_labels) == (other.path, other.topk_labels)
        assert one.topk_scores == pytest.approx(other.topk_scores, abs=1e-6)
    output = tmp_path / "out.csv"
    assert run(model, tmp_path / "pictures", "-o", output) == 3
    assert broken[4] in capsys.readouterr().err
    assert len(output.read_text().splitlines()) == N  # the header and all but one
    assert run(model, broken[4], "-o", output) == 3
    assert len(output.read_text().splitlines()) == 1


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


def test_a_terminal_gets_no_control_characters(monkeypatch):
    name = "a\x1b]0;title\x07.png"
    row = predict.Prediction(name, [0], ["d\x07ots"], [0.5], [0.9]).cells()
    columns = predict.columns(1, unknown=False, abstain=False)
    reading, writing_end = os.openpty()
    with os.fdopen(writing_end, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        predict.write_csv(None, columns, iter([row]))
    said = ""
    with contextlib.suppress(OSError):  # which says that all is read
        while part := os.read(reading, 10_000):
            said += part.decode()
    os.close(reading)
    assert r"a\x1b]0;title\x07.png,d\x07ots,0.900000,0.500000" in said
    assert "\x1b" not in said and "\x07" not in said
