import io
import re
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.made_results import Results
from support.pages import write

from latteclip.core import tables
from latteclip.report import images, runs

CHOSEN = [3, 17, 30]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def train(results):
    return runs.read_splits(results.images, results.pseudo_labels)[0]


def test_texts_name_their_class_as_whole_words_in_any_case():
    naming = images.ClassMentionCounter(["red", "Dot", "line", "l"])
    assert naming.share is None
    naming.add(["", ""], [0, 1])
    assert naming.share is None
    naming.add(["A Red dot", "a red dot", "", "a red dot", "lines"], [0, 1, 0, 2, 3])
    assert naming.share == pytest.approx(50)  # of 4 texts; "lines" holds no word "l"


def test_tables_may_be_read_in_pieces_of_any_size(results, train, monkeypatch):
    read = {
        images.read_image_captions: results.write_captions("image"),
        images.read_group_captions: results.write_captions("group"),
    }
    whole = [one(path, train, CHOSEN, results.classnames) for one, path in read.items()]
    monkeypatch.setattr(images, "PIECE", 3)
    assert [one(path, train, CHOSEN, results.classnames) for one, path in read.items()] == whole


def test_chosen_images_have_their_captions_and_a_group_that_holds_them(results, train):
    path = results.write_captions("image")
    texts = dict(pd.read_parquet(path)[["id", "caption"]].to_numpy())
    found = images.read_image_captions(path, train, CHOSEN, results.classnames)
    assert found.texts == {i: texts[results.image_ids[i]] for i in CHOSEN}
    path = results.write_captions("group")
    label_of = dict(zip(results.image_ids, results.before, strict=True))
    held = {name for names in pd.read_parquet(path)["members"] for name in names}
    found = images.read_group_captions(path, train, CHOSEN, results.classnames)
    for i in CHOSEN:
        members = found.groups[i].members
        assert {label_of[name] for name in members} == {results.before[i]}
        assert results.image_ids[i] in members or results.image_ids[i] not in held


# Of a kind of captions, as in captions/summary.json.
SUMMARY = {
    **{"captions": 5, "failed": 0, "empty": 1, "cut": 2, "distinct": 3},
    **{"words": {"mean": 2.5}, "tokens": {"mean": 2}, "share_naming_a_class": 0.75},
    "most_repeated": [{"caption": "a red dot", "times": 2}],
}


def test_caption_statistics_are_those_of_the_summary():
    captions = images.Captions({}, naming_pseudo_label=50.0, naming_label=None)
    found = images.caption_statistics(SUMMARY, captions)
    assert (found["captions"], found["distinct"], found["empty"], found["failed"]) == (5, 3, 1, 0)
    assert (found["cut"], found["words"], found["tokens"]) == pytest.approx((40, 2.5, 2))
    assert found["names_class"] == pytest.approx(75)
    assert (found["names_pseudo_label"], found["names_label"]) == (50, None)
    assert found["frequent"] == [("a red dot", 2)]
    nothing = {**SUMMARY, "words": {}, "tokens": {}, "most_repeated": []}
    assert images.caption_statistics(nothing, captions)["words"] is None


def write_duplicates(results, pairs):
    """DUPLICATES by the numbers of images."""
    columns = {
        "image_id": [results.image_ids[i] for i, _ in pairs],
        "duplicate_id": [results.image_ids[j] for _, j in pairs],
        "distance": [0.01 * n for n in range(len(pairs))],
    }
    path = results.folder / "duplicates.parquet"
    tables.write(path, columns, tables.DUPLICATES)
    return str(path)


# Of 31 training images and 53 for testing: one pair of the first, two of the others, three between.
PAIRS = [(0, 5), (40, 41), (41, 42), (3, 50), (4, 50), (7, 60)]


def test_the_page_counts_pairs_and_shows_some(results):
    page, _ = write(results, duplicates=write_duplicates(results, PAIRS))
    numbers = re.findall(r"\d+", page.sections["images"])
    for number in "61232":  # pairs; within training, within testing, between; leaked images
        numbers = numbers[numbers.index(number) + 1 :]
    alts = [a["alt"] for tag, a in page.elements if tag == "img" and "near-duplicates" in a["alt"]]
    assert len(alts) == 12 and alts[0].endswith(results.image_ids[0])


def test_accuracies_without_leaked_test_images_equal_the_loop(results):
    page, _ = write(results, duplicates=write_duplicates(results, PAIRS))
    rows = page.tables["without-leaks"][1:]
    assert [row[0][0] for row in rows] == list(results.methods)
    for row in rows:
        of_method = [run for run in results.runs if run.method == row[0][0]]
        accuracies = []
        for run in of_method:
            table = tables.read(run.predictions, tables.PREDICTIONS)[0].to_pylist()
            right = [
                one["prediction"] == one["label"]
                for one in table
                if one["image_id"] not in {results.image_ids[50], results.image_ids[60]}
            ]
            assert len(right) == 51
            accuracies.append(100 * np.mean(right))
        assert float(row[2][1]) == pytest.approx(np.mean(accuracies))
        assert float(row[3][1]) == pytest.approx(float(row[2][1]) - float(row[1][1]))


def test_without_labels_or_without_leaks_no_accuracy_is_compared(results, tmp_path):
    page, _ = write(results, duplicates=write_duplicates(results, PAIRS[:3]))
    assert "without-leaks" not in page.tables
    unlabelled = Results(tmp_path, labelled=False)
    page, _ = write(unlabelled, duplicates=write_duplicates(unlabelled, PAIRS))
    assert "without-leaks" not in page.tables
    page, _ = write(results, duplicates=write_duplicates(results, []))
    assert "images" not in page.sections


def test_noise_fits_into_its_bytes_and_a_small_picture_keeps_its_size():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (700, 500, 3), dtype=np.uint8))
    small = images.picture(noise, 320, 9_000)
    data = b64decode(small.uri.removeprefix("data:image/webp;base64,"))
    assert len(data) <= 9_000
    shown = Image.open(io.BytesIO(data))
    assert shown.size == (small.width, small.height)
    assert shown.width / shown.height == pytest.approx(5 / 7, abs=0.02)
    flat = images.picture(Image.new("RGB", (64, 48), "red"), 320, 9_000)
    assert (flat.width, flat.height) == (64, 48)
