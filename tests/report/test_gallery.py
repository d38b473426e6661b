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
from latteclip.report import gallery, runs

CHOSEN = [3, 17, 30]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def train(results):
    return runs.read_splits(results.images, results.pseudo_labels)[0]


@pytest.mark.parametrize("kind", ["image", "group"])
def test_captions_may_be_read_in_pieces_of_any_size(results, train, kind, monkeypatch):
    path = results.write_captions(kind)
    whole = gallery.read_captions(path, train, CHOSEN, results.classnames)
    monkeypatch.setattr(gallery, "PIECE", 3)
    assert gallery.read_captions(path, train, CHOSEN, results.classnames) == whole


def test_chosen_images_have_their_captions_and_a_group_that_holds_them(results, train):
    path = results.write_captions("image")
    texts = dict(pd.read_parquet(path)[["id", "caption"]].to_numpy())
    rows = gallery.read_captions(path, train, CHOSEN, results.classnames).rows
    assert {i: row["caption"] for i, row in rows.items()} == {
        i: texts[results.image_ids[i]] for i in CHOSEN
    }
    path = results.write_captions("group")
    label_of = dict(zip(results.image_ids, results.before, strict=True))
    grouped = {name for names in pd.read_parquet(path)["members"] for name in names}
    rows = gallery.read_captions(path, train, CHOSEN, results.classnames).rows
    for i in CHOSEN:
        members = rows[i]["members"]
        assert {label_of[name] for name in members} == {results.before[i]}
        assert results.image_ids[i] in members or results.image_ids[i] not in grouped


def write_duplicates(results, sets):
    """DUPLICATES by the numbers of images in each set."""
    rows = sorted((i, number) for number, images in enumerate(sets) for i in images)
    columns = {
        "image_id": [results.image_ids[i] for i, _ in rows],
        "set": [number for _, number in rows],
    }
    path = results.folder / "duplicates.parquet"
    tables.write(path, columns, tables.DUPLICATES)
    return str(path)


# Of 31 training images and 53 for testing: a set of the first, one of the others, two of both.
SETS = [(0, 5), (40, 41, 42), (3, 4, 50), (7, 60)]


def test_near_duplicates_are_counted_and_leaked_test_images_left_out(results):
    page, _ = write(results, duplicates=write_duplicates(results, SETS))
    numbers = re.findall(r"\d+", page.sections["images"])
    # Images and sets; sets within training, within testing, in both; leaked images.
    for number in ("10", *"41122"):
        numbers = numbers[numbers.index(number) + 1 :]
    alts = [
        a["alt"]
        for tag, a in page.elements
        if tag == "img" and "near-duplicates" in a["alt"]
    ]
    assert len(alts) == 8 and alts[0].endswith(results.image_ids[0])
    rows = page.tables["without-leaks"][1:]
    assert [row[0][0] for row in rows] == list(results.methods)
    leaked = {results.image_ids[i] for i in (50, 60)}
    for row in rows:
        runs_of = [run for run in results.runs if run.method == row[0][0]]
        read = [pd.read_parquet(run.predictions) for run in runs_of]
        unleaked = [table[~table["image_id"].isin(leaked)] for table in read]
        assert {len(table) for table in unleaked} == {51}
        right = [(table["prediction"] == table["label"]).mean() for table in unleaked]
        assert float(row[2][1]) == pytest.approx(100 * np.mean(right))
        assert float(row[3][1]) == pytest.approx(float(row[2][1]) - float(row[1][1]))


def test_without_labels_or_without_leaks_no_accuracy_is_compared(results, tmp_path):
    page, _ = write(results, duplicates=write_duplicates(results, SETS[:2]))
    assert "without-leaks" not in page.tables
    unlabelled = Results(tmp_path, labelled=False)
    page, _ = write(unlabelled, duplicates=write_duplicates(unlabelled, SETS))
    assert "without-leaks" not in page.tables
    page, _ = write(results, duplicates=write_duplicates(results, []))
    assert "images" not in page.sections


def test_noise_fits_into_its_bytes_and_a_small_picture_keeps_its_size():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (700, 500, 3), dtype=np.uint8))
    small = gallery.picture(noise, 320, 9_000)
    data = b64decode(small.uri.removeprefix("data:image/webp;base64,"))
    assert len(data) <= 9_000
    shown = Image.open(io.BytesIO(data))
    assert shown.size == (small.width, small.height)
    assert shown.width / shown.height == pytest.approx(5 / 7, abs=0.02)
    flat = gallery.picture(Image.new("RGB", (64, 48), "red"), 320, 9_000)
    assert (flat.width, flat.height) == (64, 48)
