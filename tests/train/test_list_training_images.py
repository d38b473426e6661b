"""Which changes are due a training, on ten pictures of which a change is a tenth."""

from types import SimpleNamespace

import pytest
from support.trainings import CLASSNAMES, Inputs, settings

from latteclip.core import tables
from latteclip.core.holdout import Fold, left_out, left_out_images
from latteclip.train.data import TrainingFiles, TrainingImagesMetadata, training_request
from latteclip.train.list_training_images import list_training_images

N = 10


class Listed(Inputs):
    """Ten pictures, and the list of them."""

    def __init__(self, folder):
        super().__init__(folder, [0] * N)
        self.list = folder / "training_images.parquet"
        self.values = SimpleNamespace(
            labels=[0] * N, captions=["dots"] * N, settings=settings("flyp")
        )
        self.write()

    def training_files(self):
        return TrainingFiles(self.index, self.labels, self.captions(self.values.captions))

    def write(self, **given):
        options = {"code": "c", "retrain_share": 0.1, "retrainings": 0, **given}
        files = self.training_files()
        list_training_images(files, self.values.settings, str(self.list), **options)
        return tables.read_metadata(self.list, TrainingImagesMetadata).identity

    def ids(self):
        return tables.read(self.list, tables.TRAINING_IMAGES)["image_id"].to_pylist()


@pytest.fixture
def listed(tmp_path):
    return Listed(tmp_path)


def grow(listed, n):
    """Index n pictures more, with the same label and caption."""
    more = Inputs(listed.folder / "more", [0] * (N + n))
    listed.index, listed.labels, listed.names = more.index, more.labels, more.names
    listed.folder = more.folder
    listed.values.captions = ["dots"] * (N + n)


def test_the_list_has_all_training_images_and_none_of_the_test_split(listed):
    assert listed.ids() == listed.names


@pytest.mark.parametrize(("n", "is_due"), [(0, False), (1, False), (2, True)])
def test_a_tenth_of_new_images_is_not_due_a_training(listed, n, is_due):
    before = listed.list.read_bytes()
    grow(listed, n)
    listed.write()
    assert (listed.list.read_bytes() != before) == is_due
    assert len(listed.ids()) == (N + n if is_due else N)


def test_images_that_are_gone_count_too(listed):
    grow(listed, -1)
    listed.write()
    assert len(listed.ids()) == N
    grow(listed, -2)
    listed.write()
    assert len(listed.ids()) == N - 2


@pytest.mark.parametrize(("changed", "is_due"), [(1, False), (2, True)])
def test_other_captions_count(listed, changed, is_due):
    before = listed.list.read_bytes()
    listed.values.captions = ["lines"] * changed + ["dots"] * (N - changed)
    listed.write()
    assert (listed.list.read_bytes() != before) == is_due


@pytest.mark.parametrize(
    "given", [{"code": "d"}, {"retrainings": 1}, {"settings": settings("flyp", lr=0.5)}]
)
def test_code_settings_and_a_user_s_wish_are_due_a_training_with_the_same_images(
    listed, given
):
    before = listed.write()
    given = dict(given)
    listed.values.settings = given.pop("settings", listed.values.settings)
    assert listed.write(**given) != before


def test_other_classes_are_due_a_training(listed):
    before = listed.write()
    listed.write_index(written={CLASSNAMES[0]: "Striped"})
    assert listed.write() != before


def test_a_share_of_nothing_trains_for_each_change(listed):
    grow(listed, 1)
    listed.write(retrain_share=0.0)
    assert len(listed.ids()) == N + 1


def test_a_request_is_of_the_list_the_settings_and_the_seed(listed):
    def request(seed=0, **given):
        files = TrainingFiles(listed.index, listed.labels, training_images=str(listed.list))
        return training_request(files, settings("flyp", **given), seed)

    first = request()
    assert first == request(compute={"micro_batch": 1})  # which changes no result
    assert len({first, request(seed=1), request(lr=0.5)}) == 3
    grow(listed, 1)
    listed.write()
    assert request() == first
    grow(listed, 2)
    listed.write()
    assert request() != first


def test_new_images_move_no_image_out_of_those_that_were_left_out(tmp_path):
    """Else a kept model would be judged on images that it learned from."""
    fold = Fold(0.3, number=1, count=3)
    images = Inputs(tmp_path / "a", [0] * 400)
    listed = tmp_path / "list.parquet"
    options = {"code": "c", "retrain_share": 0.5, "retrainings": 0}
    files = TrainingFiles(images.index, images.labels)
    list_training_images(files, settings("flyp"), str(listed), **options)
    names = images.names
    absent = {name for name, out in zip(names, left_out(names, fold), strict=True) if out}
    grown = Inputs(tmp_path / "b", [0] * 440)
    found = left_out_images(grown.index, fold, str(listed))["image_id"].to_pylist()
    assert set(found) == absent
    other = left_out_images(grown.index, fold, None)["image_id"].to_pylist()
    assert set(other) != absent  # as it would be without the list
