import pandas as pd
import pytest
from support.made_results import Results

from latteclip.report import images, runs

CHOSEN = [3, 17, 30]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def train(results):
    return runs.read_splits(results.images, results.pseudo_labels)[0]


def test_texts_name_their_class_as_whole_words_in_any_case():
    naming = images.Naming(["red", "Dot", "line", "l"])
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
