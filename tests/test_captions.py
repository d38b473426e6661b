from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import write_index, write_pictures, write_pseudo_labels

from latteclip import captioners, captions, tables
from latteclip.captioners import Answer, CaptionerSettings
from latteclip.captions import GroupSettings, draw_groups
from latteclip.errors import UserError
from latteclip.grids import grid

SETTINGS = CaptionerSettings(
    engine="transformers",
    model="some/model",
    revision="abc",
    dtype="float32",
    max_new_tokens=9,
    max_model_len=99,
    gpu_memory_utilization=0.5,
    batch_size=3,
)
GROUPS = GroupSettings(seed=4, canvas=64, gap=4)
CLASSNAMES = ["red dots", "lines"]
LABELS = [1, 0, 1, 1, 1, 0, 1]


class Recorder:
    """Remembers what it is asked; its answers count up."""

    version = "recorder 1"

    def __init__(self, texts=None):
        self.batches = []
        self.texts = texts

    @property
    def requests(self):
        return [request for batch in self.batches for request in batch]

    def answer(self, requests):
        first = len(self.requests)
        self.batches.append(list(requests))
        numbers = range(first, first + len(requests))
        texts = self.texts or [f"text\n {n}" for n in range(99)]
        return [Answer(texts[n], "length" if n == 2 else "stop", n + 1) for n in numbers]


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(captioners, "start", lambda settings, threads: recorder)
    return recorder


@pytest.fixture
def dataset(tmp_path):
    """An index of 7 training images and 2 test images that are not even on the disk."""
    files = write_pictures(tmp_path / "pictures", 7)
    names = [Path(file).name for file in files]
    tests = [str(tmp_path / "pictures" / f"test{i}.png") for i in range(2)]
    index = write_index(
        tmp_path / "images.parquet",
        [tests[0], *files, tests[1]],
        ["test", *["train"] * 6, "val", "test"],
        [0] * 9,
        CLASSNAMES,
    )
    labels = write_pseudo_labels(tmp_path / "pseudo_labels.parquet", names, LABELS)
    return index, labels, names, files


def read(path):
    table, metadata = tables.read(path, tables.CAPTIONS)
    return table.to_pydict(), metadata


def same_picture(a, b):
    return a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


def test_groups_hold_four_different_images_of_the_class():
    labels = [0, 1] * 5 + [2] * 30
    for label, members in zip(labels, draw_groups(labels, seed=3), strict=True):
        assert len(set(members)) == len(members) == 4
        assert {labels[member] for member in members} == {label}


def test_classes_of_fewer_than_four_are_drawn_with_replacement():
    labels = [5, 8, 8, 8, 5, 9]
    groups = draw_groups(labels, seed=3)
    for label, members in zip(labels, groups, strict=True):
        assert len(members) == 4
        assert {labels[member] for member in members} == {label}
    assert groups[5] == [5, 5, 5, 5]


def test_a_class_of_four_gives_all_of_them():
    assert all(sorted(members) == [0, 1, 2, 3] for members in draw_groups([7] * 4, seed=3))


def test_groups_are_a_function_of_the_seed():
    labels = [0] * 20
    assert draw_groups(labels, seed=3) == draw_groups(labels, seed=3)
    assert draw_groups(labels, seed=3) != draw_groups(labels, seed=4)


def test_every_image_of_a_class_gets_into_groups():
    groups = draw_groups([0] * 20, seed=3)
    assert len(groups) == 20
    assert {member for members in groups for member in members} == set(range(20))


def test_images_are_asked_in_order_in_batches_and_tests_never(dataset, recorder, tmp_path):
    index, _, names, files = dataset
    output = tmp_path / "out.parquet"
    captions.caption_images(index, None, "What?", SETTINGS, str(output), threads=2)
    assert [len(batch) for batch in recorder.batches] == [3, 3, 1]
    for request, file in zip(recorder.requests, files, strict=True):
        assert request.prompt == "What?"
        assert same_picture(request.image, Image.open(file))
    columns, _ = read(output)
    assert columns["id"] == names
    assert columns["members"] == [[name] for name in names]
    assert columns["pseudo_label"] == [None] * 7
    assert columns["caption"] == [f"text {n}" for n in range(7)]
    assert columns["finish_reason"] == ["stop", "stop", "length", *["stop"] * 4]
    assert columns["n_tokens"] == [1, 2, 3, 4, 5, 6, 7]


def test_place_in_the_image_prompt_takes_the_pseudo_label(dataset, recorder, tmp_path):
    index, labels, _, _ = dataset
    output = tmp_path / "out.parquet"
    captions.caption_images(index, labels, "Is it {}?", SETTINGS, str(output), threads=1)
    wanted = [f"Is it {CLASSNAMES[label]}?" for label in LABELS]
    assert [request.prompt for request in recorder.requests] == wanted
    assert read(output)[0]["prompt"] == wanted


def test_place_in_the_prompt_without_pseudo_labels_is_refused(dataset, recorder, tmp_path):
    with pytest.raises(UserError, match="--pseudo-labels"):
        captions.caption_images(
            dataset[0], None, "Is it {}?", SETTINGS, str(tmp_path / "out.parquet"), threads=1
        )


def test_groups_show_the_grid_of_their_members(dataset, recorder, tmp_path):
    index, labels, names, files = dataset
    output = tmp_path / "out.parquet"
    captions.caption_groups(index, labels, "All {}?", GROUPS, SETTINGS, str(output), threads=2)
    columns, _ = read(output)
    drawn = draw_groups(LABELS, GROUPS.seed)
    assert columns["id"] == [str(number) for number in range(7)]
    assert columns["members"] == [[names[member] for member in group] for group in drawn]
    assert columns["pseudo_label"] == LABELS
    assert columns["prompt"] == [f"All {CLASSNAMES[label]}?" for label in LABELS]
    for request, group in zip(recorder.requests, drawn, strict=True):
        pictures = [Image.open(files[member]) for member in group]
        assert same_picture(request.image, grid(pictures, GROUPS.canvas, GROUPS.gap))


def test_provenance_is_written(dataset, recorder, tmp_path):
    index, labels, _, _ = dataset
    output = tmp_path / "out.parquet"
    captions.caption_groups(index, labels, "All?", GROUPS, SETTINGS, str(output), threads=1)
    _, metadata = read(output)
    assert metadata["captioner"] == asdict(SETTINGS)
    assert metadata["engine"] == "recorder 1"
    assert metadata["groups"] == asdict(GROUPS)


def test_empty_captions_are_refused_and_nothing_is_written(dataset, recorder, tmp_path):
    recorder.texts = ["a", " \n", "b", "", "c", "d", "e"]
    output = tmp_path / "out.parquet"
    with pytest.raises(UserError, match="nothing for 2 of 7"):
        captions.caption_images(dataset[0], None, "What?", SETTINGS, str(output), threads=1)
    assert not output.exists()


def test_pseudo_labels_of_other_images_are_refused(dataset, recorder, tmp_path):
    other = write_pseudo_labels(tmp_path / "other.parquet", dataset[2][1:], LABELS[1:])
    with pytest.raises(UserError, match=r"lacks 1 of 7 images, the first '000\.png'"):
        captions.caption_groups(
            dataset[0], other, "All?", GROUPS, SETTINGS, str(tmp_path / "out.parquet"), threads=1
        )
