import gzip
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.image_folders import index
from support.shards import IMAGE, labelled, parquet_shard, picture, tar_shard

from latteclip.core.errors import UserError
from latteclip.data import shards
from latteclip.data.images import image_exists, open_rgb, read_image, shard_member
from latteclip.data.splits import IndexSettings, read_split

CLASSES = ["cat", "dog"]
NUMBERS = {"train": range(9), "test": range(9, 13)}  # of the pictures of each split


def tars(root):
    """Shards of WebDataset, two for training and one for testing, with classes.txt."""
    tar_shard(root / "train" / "shard-000000.tar", labelled(NUMBERS["train"][:6]))
    tar_shard(root / "train" / "shard-000001.tar", labelled(NUMBERS["train"][6:]))
    tar_shard(root / "test" / "shard-000000.tar", labelled(NUMBERS["test"]))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def parquets(root):
    """The same pictures as a dataset of the Hugging Face hub."""
    for split, numbers in NUMBERS.items():
        path = root / "data" / f"{split}-00000-of-00001.parquet"
        parquet_shard(path, list(map(picture, numbers)), [n % 2 for n in numbers], CLASSES)
    return root


def read(root, kind="webdataset", **settings):
    return read_split(root, IndexSettings(kind=kind, **settings))


def one_tar(tmp_path, *samples, extra=()):
    """A folder with one shard, and its class names."""
    tar_shard(tmp_path / "d" / "a.tar", samples, extra)
    (tmp_path / "d" / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path / "d"


@pytest.mark.parametrize(("kind", "write"), [("webdataset", tars), ("parquet", parquets)])
def test_images_are_read_where_they_lie(kind, write, tmp_path):
    root = write(tmp_path / "d")
    before = sorted(root.rglob("*"))
    rows, names, corrupt = index(root, tmp_path, threads=2, kind=kind)
    assert names == CLASSES and not corrupt and len(rows) == 13
    assert len({row["image_id"] for row in rows}) == 13
    for split, numbers in NUMBERS.items():
        found = [row for row in rows if row["split"] == split]
        assert [row["label"] for row in found] == [n % 2 for n in numbers]
        assert [read_image(row["path"]) for row in found] == list(map(picture, numbers))
        assert all(open_rgb(row["path"]).size == (12, 8) for row in found)
    assert sorted(root.rglob("*")) == before


def test_images_of_tars_have_their_names_with_the_shard_where_two_have_one(tmp_path):
    ids = [item.image_id for item in read(tars(tmp_path)).items]
    assert sorted(ids) == [f"{n:06d}.jpg" for n in range(13)]
    tar_shard(tmp_path / "train" / "shard-000001.tar", labelled([0]))
    ids = {item.image_id for item in read(tmp_path).items}
    assert {f"train/shard-00000{n}.tar/000000.jpg" for n in (0, 1)} < ids


def with_classes(tmp_path, **shards):
    """A folder of shards, each with pictures of so many numbers."""
    for name, numbers in shards.items():
        tar_shard(tmp_path / f"{name}.tar", labelled(numbers))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


def test_without_a_word_in_paths_a_hash_says_what_is_for_testing(tmp_path):
    split = read(with_classes(tmp_path, a=range(40)))
    assert {item.split for item in split.items} == {"train", "test"}
    with pytest.raises(UserError, match=r"a\.tar"):
        read(with_classes(tmp_path, test=[50]))


def test_shards_called_dev_are_for_validation(tmp_path):
    split = read(with_classes(tmp_path, train=[1], dev_0=[2], test=[3]))
    assert [item.split for item in split.items] == ["val", "train", "test"]


def test_globs_may_say_which_shards_are_for_testing(tmp_path):
    root = with_classes(tmp_path, a=[1], b=[2])
    found = read(root, lists={"train": "a*.tar", "test": "b.tar"})
    assert [item.split for item in found.items] == ["train", "test"]
    with pytest.raises(UserError, match=r"split\.lists\.test"):
        read(root, lists={"train": "a.tar", "test": "c.tar"})


# Tars of WebDataset.


TWICE = ("1", {"jpg": picture(1), "cls": b"0"})


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([("7", {"jpg": picture(7), "cls": b"2"})], "2"),
        ([("7", {"jpg": picture(7), "cls": b"\xff"})], "a.tar"),
        ([("7", {"jpg": b"", "cls": b"x" * (shards.MAX_LABEL + 1)})], "a.tar"),
        ([("7", {"jpg": picture(7), "json": b"[1"})], "'a'"),
        ([("7", {"jpg": picture(7), "json": b'{"a": [1]}'})], "7.jpg"),
        ([TWICE, *labelled([2]), TWICE], r"a\.tar/1\.jpg"),
    ],
)
def test_samples_that_are_not_clear_are_named(tmp_path, samples, said):
    with pytest.raises(UserError, match=said):
        read(
            one_tar(tmp_path, *samples), label="json:a" if "json" in samples[0][1] else None
        )


def test_a_label_that_no_sample_has_is_named(tmp_path):
    with pytest.raises(UserError, match=r"split\.label txt"):
        read(one_tar(tmp_path, *labelled([1])), label="txt")


def entry(name, kind=tarfile.REGTYPE, target="", **pax_headers):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, target, pax_headers
    return info


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (entry("../a.jpg"), "not a path"),
        (entry("/a.jpg"), "not a path"),
        (entry("a\udcff.jpg"), "not a path in UTF-8"),
        (entry("a.jpg", tarfile.SYMTYPE, "/etc/passwd"), "not a plain file"),
        (entry("a.jpg", tarfile.FIFOTYPE), "not a plain file"),
        (entry("a.jpg", **{"GNU.sparse.size": "9"}), "sparse"),
        (entry("a", **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "sparse"),
        (entry("a.jpg", comment="x" * 300_000), "header of 300"),
    ],
    ids=range(8),
)
def test_entries_that_are_unsafe_are_refused(tmp_path, info, said):
    root = one_tar(tmp_path, *labelled([1]), extra=[info])
    with pytest.raises(UserError, match=f"{root}.*{said}") as error:
        read(root)
    assert len(str(error.value)) < 1000


def test_damaged_compressed_and_cut_shards_are_refused(tmp_path):
    shard = one_tar(tmp_path, *labelled(range(5))) / "a.tar"
    whole = shard.read_bytes()
    third = whole.index(b"000002.jpg")
    changed = bytearray(whole)
    changed[third] ^= 1
    endless = bytearray(whole)  # the third image's size, as those beyond 8 GiB are written
    endless[third + 124 : third + 136] = b"\x80" + (2**60).to_bytes(11, "big")
    header = endless[third : third + 148] + b" " * 8 + endless[third + 156 : third + 512]
    endless[third + 148 : third + 156] = b"%06o\0 " % sum(header)
    cut = whole[: third + 600]
    for content in (cut, changed, endless, gzip.compress(whole), b"", b"x" * 999):
        shard.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.tar"):
            read(shard.parent)


def test_a_shard_that_changed_since_it_was_indexed(tmp_path):
    path = one_tar(tmp_path, *labelled([1])) / "a.tar"
    for place in ("0+99999999", "0+99999999999"):
        for opened in (open_rgb, read_image):
            with pytest.raises(UserError, match=r"#0\+9"):
                opened(f"{path}#{place}")
    assert image_exists(f"{path}#0+512") and not image_exists(f"{path}x.tar#0+512")
    assert shard_member("a.tar#b.jpg") is None


# Parquet files of Hugging Face datasets.


def test_labels_are_numbers_names_or_not_known(tmp_path):
    pictures = list(map(picture, range(4)))
    path = tmp_path / "p.parquet"
    parquet_shard(path, pictures, [1, 0, -1, None], CLASSES, column="y")
    split = read(tmp_path, "parquet", label="y")
    assert split.names == CLASSES and [i.label for i in split.items] == [1, 0, None, None]
    with pytest.raises(UserError, match=r"no column 'label'"):
        read(tmp_path, "parquet", label="label")
    parquet_shard(path, pictures, ["b", "a", "", "b"])
    split = read(tmp_path, "parquet")
    assert split.names == ["a", "b"] and [i.label for i in split.items] == [1, 0, None, 1]
    parquet_shard(path, pictures, [0.5] * 4, CLASSES)
    with pytest.raises(UserError, match=r"p\.parquet/0 .*0\.5"):
        read(tmp_path, "parquet")


def test_files_without_images_are_refused(tmp_path):
    path = tmp_path / "p.parquet"
    one = pa.array([{"bytes": b"", "path": ""}], IMAGE)
    for columns in (None, {"label": [1]}, {"image": one, "mask": one}):
        if columns:
            pq.write_table(pa.table(columns), path)
        else:
            path.write_bytes(b"PAR1 no such file PAR1")
        with pytest.raises(UserError, match=r"p\.parquet"):
            read(tmp_path, "parquet")
