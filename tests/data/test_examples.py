"""Folders of images of known classes that are not in the dataset."""

import pytest
from support.image_folders import images

from latteclip.core.errors import UserError
from latteclip.data.folder_files import find_examples

REPLACEMENTS = {"_": " "}


def test_each_folder_is_a_class(tmp_path):
    images(tmp_path, "big_cat/a.jpg", "big_cat/more/b.jpg", "Dog/c.jpg")
    found = find_examples(tmp_path, ["dog", "big cat", "owl"], REPLACEMENTS)
    names = [(one.path.removeprefix(f"{tmp_path}/"), one.classname) for one in found]
    assert names == [
        ("Dog/c.jpg", "dog"),
        ("big_cat/a.jpg", "big cat"),
        ("big_cat/more/b.jpg", "big cat"),
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no folders"),
        (["dog/a.jpg", "cta/b.jpg"], "did you mean cat"),
        (["dog/a.jpg", "cat/readme.txt"], "cat holds no image"),
        (["dog/a.jpg", "Dog/b.jpg"], "'Dog' and 'dog'"),
        (["dog/a.jpg", "b.jpg"], r"b\.jpg is in no class folder"),
    ],
)
def test_a_folder_that_shows_no_class_is_named(tmp_path, names, message):
    images(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        find_examples(tmp_path, ["dog", "cat"], REPLACEMENTS)
