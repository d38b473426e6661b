import os

import pytest
from support.image_folders import folders, images

from latteclip.config.keys import SplitSection
from latteclip.core.errors import UserError
from latteclip.data import folder_files


def state(root, kind="folders", **split):
    return folder_files.state(str(root), SplitSection(kind=kind, **split))


def test_what_an_index_would_read_is_noticed(tmp_path):
    root = folders(tmp_path / "photos")
    states = {state(root)}
    images(root, "dog/deeper/new.jpg")
    states.add(state(root))
    (root / "cat" / "1.jpg").rename(root / "cat" / "other.jpg")
    states.add(state(root))
    (root / "cat" / "2.jpg").unlink()
    states.add(state(root))
    images(root, "cat/3.jpg", content=b"1")
    states.add(state(root))
    os.utime(root / "cat" / "4.jpg", (1, 1))
    states.add(state(root))
    (root / "classes.txt").write_text("dog\ncat\n")
    states.add(state(root))
    assert len(states) == 7


def test_results_are_no_files_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(folders(tmp_path / "photos"))
    before = state(".", kind="csv")
    images(tmp_path / "photos", "results/mine/images.parquet", "resources/mine/data/a.jpg")
    assert state(".", kind="csv") == before


@pytest.mark.parametrize("key", ["file", "class_list", "lists"])
def test_files_that_the_split_names_count_wherever_they_are(tmp_path, key):
    root, file = folders(tmp_path / "photos"), tmp_path / "some.txt"
    file.write_text("cat\ndog\n")
    split = {key: {"train": str(file)} if key == "lists" else str(file)}
    section = SplitSection(**split)
    before = state(root, **split), folder_files.state(None, section)
    file.write_text("cat\ndog\nowl\n")
    assert state(root, **split) != before[0]
    assert folder_files.state(None, section) != before[1]  # of a folder that a rule makes


def test_a_link_leads_to_a_folder_that_moved_and_replaces_no_folder(tmp_path):
    root, place = folders(tmp_path / "photos"), tmp_path / "mine" / "folder"
    folder_files.link(str(root), str(place))
    moved = root.rename(tmp_path / "elsewhere")
    folder_files.link(str(moved), str(place))
    assert place.resolve() == moved and folder_files.linked(str(place)) == str(moved)
    (tmp_path / "filled" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="filled"):
        folder_files.link(str(moved), str(tmp_path / "filled"))


def test_a_link_leads_out_of_the_folder_where_it_really_lies(tmp_path, monkeypatch):
    (tmp_path / "disk" / "deeper").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    os.symlink("../disk/deeper", "resources")
    folder_files.link("photos", "resources/mine/folder")
    assert folder_files.linked("resources/mine/folder") == "photos"


# Examples of classes, which are not in the dataset.


def test_each_folder_of_examples_is_a_class(tmp_path):
    images(tmp_path, "big_cat/a.jpg", "big_cat/more/b.jpg", "Dog/c.jpg")
    found = folder_files.find_examples(tmp_path, ["dog", "big cat", "owl"], {"_": " "})
    names = [(path.removeprefix(f"{tmp_path}/"), name) for path, name in found]
    assert names == [
        ("Dog/c.jpg", "dog"),
        ("big_cat/a.jpg", "big cat"),
        ("big_cat/more/b.jpg", "big cat"),
    ]


def test_a_folder_that_shows_no_class_is_named(tmp_path):
    images(tmp_path, "dog/readme.txt")
    with pytest.raises(UserError, match=str(tmp_path)):
        folder_files.find_examples(tmp_path, ["dog", "cat"], {})
    images(tmp_path, "dog/a.jpg", "cta/b.jpg")
    with pytest.raises(UserError, match="did you mean cat"):
        folder_files.find_examples(tmp_path, ["dog", "cat"], {})
