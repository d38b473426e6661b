import itertools
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support import records, tiny, trainings
from support.tiny import write_pictures

from latteclip.core import holdout, tables
from latteclip.core.errors import UserError
from latteclip.core.files import write_record
from latteclip.data.loader import batches
from latteclip.train import data as module
from latteclip.train import data as training_data
from latteclip.train.data import TrainingFiles, TrainingImages, schedule
from latteclip.train.objectives.base import TokenizedTexts

LABELS = [2, 0, 2, 1, 0, 2, 1]
TRUE = [0, 0, 2, 1, 1, 2, 1]
FUSED = [2, 0, 2, 1, 0, 1, 1]


class Files(trainings.Inputs):
    """Seven training images with features, labels and captions."""

    def __init__(self, folder, true=TRUE):
        self.features = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
        super().__init__(folder, LABELS, true=true, features=self.features)

    def fused_labels(self, drawn=(), confidence=(0.5,) * 7):
        """The files of fused labels, which answers about some drawn images check."""
        schema = tables.FUSED_LABELS
        columns = {field.name: pa.nulls(len(self.names), field.type) for field in schema}
        columns |= {"image_id": self.names, "fused_label": FUSED}
        columns["fused_confidence"] = confidence
        labels, report = str(self.folder / "l.parquet"), str(self.folder / "l.json")
        tables.write(labels, columns, schema)
        write_record(report, records.fusion(checking=list(drawn)))
        return {"fused_labels": labels, "fusion_report": report}

    def read(self, labels="zero_shot", fold=holdout.NO_FOLD, **files):
        bank = TokenizedTexts(tiny.tiny_clip())
        read = training_data.read(
            TrainingFiles(self.index, self.labels, **files), "a {}.", labels, bank, fold
        )
        return read, list(bank.texts)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_images_drawn_to_check_labels_and_those_of_no_class_are_not_trained_on(files):
    drawn, confidence = files.names[1:3], [0.5, 1, 1, 1e-6, 0, 0.2, 1]
    data, _ = files.read("fused", **files.fused_labels(drawn, confidence))
    assert [Path(path).name for path in data.paths] == [
        files.names[i] for i in (0, 3, 5, 6)
    ]
    assert data.labels.tolist() == [FUSED[i] for i in (0, 3, 5, 6)]
    assert data.drawn == drawn
    assert data.n_scheduled == 7


def test_supervision_needs_every_label(tmp_path):
    assert Files(tmp_path).read("ground_truth")[0].labels.tolist() == TRUE
    files = Files(tmp_path, [*TRUE[:5], None, None])
    with pytest.raises(UserError, match=r"i\.parquet"):
        files.read("ground_truth")


def test_groups_have_their_most_frequent_class_and_other_classes_their_description(files):
    # Of classes 0222 and 2112.
    groups = files.groups([[1, 0, 2, 5], [2, 6, 3, 0]], ["a", "b"])
    data, texts = files.read(group_captions=groups)
    assert [texts[i] for i in data.texts.groups] == ["a", "b", "a striped.", "a dotted."]
    # The first of equally frequent ones.
    assert data.texts.group_labels.tolist() == [2, 2, 0, 1]


def test_left_out_images_and_what_shows_them_are_not_trained_on(files, monkeypatch):
    monkeypatch.setattr(holdout, "MIN_LEFT_OUT", 1)
    fold = holdout.Fold(0.3)
    out = set(holdout.left_out(files.names, fold).nonzero()[0].tolist())
    assert len(out) == 2
    kept = [i for i in range(7) if i not in out]
    one, other = sorted(out)
    members = [kept[:4], [*kept[:3], one], [kept[2]] * 4, [other] * 4]
    groups = files.groups(members, list("abcd"))
    captions = files.captions([f"caption {i}" for i in range(7)])
    data, texts = files.read(fold=fold, image_captions=captions, group_captions=groups)
    assert [Path(path).name for path in data.paths] == [files.names[i] for i in kept]
    assert data.labels.tolist() == [LABELS[i] for i in kept]
    assert [texts[i] for i in data.texts.images] == [f"caption {i}" for i in kept]
    assert [texts[i] for i in data.texts.groups[:2]] == ["a", "c"]
    assert not {"b", "d"} & set(texts)
    whole, _ = files.read(image_captions=captions, group_captions=groups)
    assert whole.digest != data.digest
    assert data.n_scheduled == whole.n_scheduled == 7
    assert len(whole.paths) == 7


# --- images ---------------------------------------------------------------------------------------

SIDE = (32, 40)  # height and width of the input
KEYS = [[(0, 3), (0, 1)], [(1, 0), (1, 3), (2, 4)], [(2, 0)]]


@pytest.fixture
def paths(tmp_path):
    return write_pictures(tmp_path / "pictures", 5)


def images(paths, folder=None, side=SIDE, seed=7):
    checksums = pa.chunked_array([[path.encode() for path in paths]])
    return TrainingImages(paths, checksums, side, seed, folder and str(folder))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_sample_depends_on_seed_pass_and_image_alone(
    paths, tmp_path, workers, is_cached, monkeypatch
):
    wanted = images(paths)
    if not workers:
        monkeypatch.setattr("latteclip.data.loader.can_fork", lambda: False)
    files = images(paths, tmp_path / "cache" if is_cached else None)
    before = torch.get_rng_state()
    for _ in range(2):  # the second time from the cache
        found = list(batches(files, KEYS, torch.device("cpu"), workers))
        assert [keys for keys, _ in found] == KEYS
        for keys, batch in found:
            for key, image in zip(keys, batch, strict=True):
                assert torch.equal(image, wanted[key][1])
    assert torch.equal(torch.get_rng_state(), before)
    assert image.dtype == torch.uint8 and image.shape == (3, *SIDE)
    others = [wanted[0, 0][1], wanted[1, 0][1], wanted[0, 1][1]]
    others.append(images(paths, seed=8)[0, 0][1])
    assert len({image.numpy().tobytes() for image in others}) == 4


def test_each_pass_has_all_images_once_in_another_order():
    found = list(schedule(range(10, 24), 4, 21, seed=1))  # six passes
    assert [len(keys) for keys in found] == [4] * 21
    numbers, shown = zip(*itertools.chain(*found), strict=True)
    assert list(numbers) == [number for number in range(6) for _ in range(14)]
    passes = [shown[start : start + 14] for start in range(0, 84, 14)]
    assert all(sorted(each) == list(range(10, 24)) for each in passes)
    assert len({*passes, tuple(range(10, 24))}) == 7
    assert list(schedule(range(10, 24), 4, 21, seed=1, start=9)) == found[9:]
    assert list(schedule(range(10, 24), 4, 21, seed=2)) != found
    assert [len(keys) for keys in schedule(range(3), 4, 2, seed=1)] == [3, 3]


def augmented(tmp_path, pixels, n):
    """n samples [n, 3, H, W] of an image [H, W, 3], in float64."""
    path = tmp_path / "picture.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    files = images([str(path)], side=pixels.shape[:2])
    return torch.stack([files[number, 0][1] for number in range(n)]).double()


def test_crops_cover_nine_tenths_of_an_image_or_more(tmp_path):
    """Counted in 32 stripes of two greys across and along the image."""
    across = 90 + np.arange(256)[None, :, None] // 8 % 2 * np.full((256, 1, 3), 40)
    area = 1
    for pixels, axis in ((across, 2), (across.transpose(1, 0, 2), 3)):
        line = augmented(tmp_path, pixels, 40).mean((1, axis))  # [40, 256]
        is_light = line > line.mean(1, keepdim=True)
        area = area * (1 + is_light.diff(dim=1).sum(1)) / 32
    assert area.amin() > 0.84
    assert area.amax() > 0.98
    assert (area < 0.96).sum() > 10


def test_colours_vary_as_the_paper_has_it(tmp_path):
    def of(pixels):
        return augmented(tmp_path, np.zeros((32, 32, 3)) + pixels, 300)

    def assert_range(values, lowest, highest, slack=0.06):
        assert values.amin().item() == pytest.approx(lowest, abs=slack)
        assert values.amax().item() == pytest.approx(highest, abs=slack)

    brightness = of(120).mean((1, 2, 3)) / 120
    assert_range(brightness, 0.5, 1.5)
    assert (brightness == 1).double().mean().item() == pytest.approx(0.2, abs=0.06)
    halves = of(np.where(np.arange(32) < 16, 60, 100)[None, :, None])
    dark, light = halves[..., :12].mean((1, 2, 3)), halves[..., 20:].mean((1, 2, 3))
    assert_range(4 * (light - dark) / (light + dark), 0.5, 1.5)
    # Bicubic resizing goes beyond the two greys at their edge.
    assert (halves.amin((1, 2, 3)) < halves[..., 0].amin((1, 2))).double().mean() > 0.3
    r, g, b = of((150, 90, 90)).mean((2, 3)).T
    is_grey = (r == g) & (g == b)
    assert is_grey.double().mean().item() == pytest.approx(0.2, abs=0.06)
    hue = torch.atan2(3**0.5 * (g - b), 2 * r - g - b) / (2 * torch.pi)
    assert_range(hue, -0.1, 0.1, 0.02)
    # Contrast has its part in this too.
    saturation = (r - b)[~is_grey] / (r + g + b)[~is_grey] * 330 / 60
    assert_range(saturation, 0.25, 2.25, 0.4)


def test_other_code_that_decodes_reads_no_image_that_was_cached(
    paths, tmp_path, monkeypatch
):
    wanted = images(paths)[0, 0][1]
    assert torch.equal(images(paths, tmp_path / "cache")[0, 0][1], wanted)
    [cached] = (tmp_path / "cache").rglob("*.ppm")
    Image.new("RGB", Image.open(cached).size).save(cached)
    assert not torch.equal(images(paths, tmp_path / "cache")[0, 0][1], wanted)
    before = TrainingImages._decode

    def _decode(self, index):
        return before(self, index)

    monkeypatch.setattr(TrainingImages, "_decode", _decode)
    assert torch.equal(images(paths, tmp_path / "cache")[0, 0][1], wanted)


def test_a_full_disk_leaves_images_uncached(paths, tmp_path, monkeypatch):
    files = images(paths, tmp_path / "cache")
    full = nullcontext(Path("/dev/full"))
    monkeypatch.setattr(module, "replacing", lambda _: full)
    assert torch.equal(files[0, 0][1], images(paths)[0, 0][1])
