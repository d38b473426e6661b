import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.image_folders import folders, images, index
from support.web import jpeg

from latteclip.core import tables
from latteclip.core.metadata import IndexMetadata
from latteclip.data import folder_files

LITTER = (
    ".DS_Store",
    "cat/.DS_Store",
    "Thumbs.db",
    "@eaDir/0.jpg",
    "dog/@eaDir/1.jpg",
    "notes.txt",
)
SAME = ("touch a file", "touch the folders", "litter", "write the same bytes")
OTHER = ("change a byte", "add", "remove", "rename", "other classes")


def state(root, table, kind="folders"):
    return folder_files.state(str(root), kind, None, str(table))


def indexed(root, tmp_path, **settings):
    """Index a folder as the workflow does; the table of its files."""
    table = tmp_path / "folder_files.parquet"
    now = state(root, table, settings.get("kind", "folders"))
    index(root, tmp_path, folder_state=(now, str(table)), **settings)
    return table


def change(root, what, number):
    """Do something to a folder, or to its image of a number."""
    file = sorted(root.rglob("[0-9]*.jpg"))[number]
    if what == "touch a file":
        os.utime(file, (number, number))
    elif what == "touch the folders":
        for folder in (root, root / "cat"):
            os.utime(folder, (number, number))
    elif what == "litter":
        images(root, LITTER[number % len(LITTER)])
    elif what == "write the same bytes":
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    elif what == "change a byte":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(
            file, (number, number)
        )  # a new time, whatever the clock of the file system
    elif what == "add":
        images(root, f"dog/deeper/new{number}.jpg")
    elif what == "remove":
        file.unlink()
    elif what == "rename":
        file.rename(file.with_name(f"renamed{number}.jpg"))
    else:
        (root / "classes.txt").write_text("dog\ncat\n")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder, the table of its files, and what stood for them when they were indexed."""
    place = tmp_path_factory.mktemp("before")
    table = indexed(folders(place / "photos"), place)
    return place / "photos", table, state(place / "photos", table)


steps = st.lists(st.tuples(st.sampled_from(SAME + OTHER), st.integers(0, 15)), max_size=4)


@given(steps)
def test_only_what_changes_names_or_content_is_noticed(before, tmp_path_factory, steps):
    place = tmp_path_factory.mktemp("after")
    root, table = place / "photos", place / "files.parquet"
    shutil.copytree(before[0], root)
    shutil.copy(before[1], table)

    def content():
        files = [path for path in root.rglob("*") if path.is_file()]
        named = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
        return {name: data for name, data in named.items() if name not in LITTER}

    was = content()
    for what, number in steps:
        change(root, what, number)
    for _ in range(2):  # the second time, new times are known
        assert (state(root, table) == before[2]) == (content() == was)


@pytest.mark.parametrize("kind", ["csv", "webdataset"])
def test_files_that_are_no_images_count_where_the_index_reads_them(tmp_path, kind):
    root = tmp_path / "d"
    images(root, *(f"{n}.jpg" for n in range(4)))
    (root / "split.csv").write_text("path,label,split\n0.jpg,a,train\n1.jpg,b,test\n")
    before = state(root, tmp_path / "none", kind)
    (root / "split.csv").write_text("path,label,split\n0.jpg,b,train\n1.jpg,a,test\n")
    os.utime(root / "split.csv", (1, 1))
    assert state(root, tmp_path / "none", kind) != before


def test_what_comes_while_the_index_is_made_is_noticed_later(tmp_path):
    root = folders(tmp_path / "photos")
    found = list(folder_files.files(str(root), "folders"))
    table = tmp_path / "files.parquet"
    images(root, "cat/late.jpg")
    folder_files.write(str(table), found, "early", [bytes(16)] * len(found))
    assert state(root, table) != "early"


def test_files_of_a_far_future_are_known_again(tmp_path):
    file = folders(tmp_path / "photos") / "cat" / "0.jpg"
    os.utime(file, (13_569_465_600,) * 2)  # in the year 2400
    table = indexed(tmp_path / "photos", tmp_path)
    before = state(tmp_path / "photos", table)
    assert indexed(tmp_path / "photos", tmp_path) == table
    assert state(tmp_path / "photos", table) == before


def test_links_to_class_folders_are_followed_and_circles_end(tmp_path):
    images(tmp_path / "elsewhere", "1.jpg")
    root = folders(tmp_path / "photos")
    (root / "eel").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(root)
    before = state(root, tmp_path / "none")
    images(tmp_path / "elsewhere", "2.jpg")
    assert state(root, tmp_path / "none") != before


def test_the_index_tells_of_other_bytes_in_a_picture_of_the_same_size(tmp_path):
    """Snakemake compares an index that is newer with the one that later stages read."""
    root = folders(tmp_path / "photos")
    contents = []
    for _ in range(2):
        index(root, tmp_path)
        contents.append(
            tables.read_metadata(tmp_path / "out" / "images.parquet", IndexMetadata).content
        )
        (root / "cat" / "1.jpg").write_bytes(jpeg() + b"\0")
    assert contents[0] != contents[1]
