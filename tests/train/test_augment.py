import itertools
import math
from collections import Counter

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop

from latteclip.demo.textures import SIDE
from latteclip.train import augment

N = 3000
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
# LatteCLIP, section 4, in the terms of open_clip.
AUG_CFG = {
    "scale": (0.9, 1.0),
    "color_jitter": (0.5, 0.5, 0.5, 0.1),
    "color_jitter_prob": 0.8,
    "gray_scale_prob": 0.2,
}


def drawn(n, seed=0):
    return torch.from_numpy(np.stack([augment.draw(seed, 0, index) for index in range(n)]))


@pytest.fixture(scope="module")
def many():
    return drawn(N)


def pictures(n, *sizes):
    """Smooth random pictures, uint8 [h, w, 3]."""
    rng = np.random.default_rng(0)
    found = []
    for (height, width), _ in zip(itertools.cycle(sizes), range(n), strict=False):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        found.append(torch.from_numpy(np.array(coarse.resize((width, height), Image.BICUBIC))))
    return found


def assert_same_distribution(found, wanted):
    """Kolmogorov and Smirnov's test of two samples, at a level of 0.001."""
    found, wanted = np.sort(found), np.sort(wanted)
    at = np.concatenate([found, wanted])
    shares = [np.searchsorted(part, at, side="right") / len(part) for part in (found, wanted)]
    assert np.abs(shares[0] - shares[1]).max() < 1.95 * math.sqrt(1 / len(found) + 1 / len(wanted))


@pytest.mark.parametrize("size", [(96, 96), (336, 440), (300, 210)], ids=str)
def test_crops_are_distributed_as_those_of_torchvision(many, size):
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    parameters = RandomResizedCrop.get_params
    wanted = [parameters(image, list(AUG_CFG["scale"]), [3 / 4, 4 / 3]) for _ in range(N)]
    found = augment.crops(torch.tensor(size).expand(N, 2), many).double().T
    for kind, (one, other) in enumerate(zip(found, torch.tensor(wanted).double().T, strict=True)):
        assert_same_distribution(one.numpy(), other.numpy()), kind
    top, left, height, width = found
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()


@pytest.mark.parametrize("size", [(200, 500), (500, 201), (100, 150), (1, 40)], ids=str)
def test_of_a_long_picture_the_middle_is_taken_as_torchvision_does(many, size):
    wanted = RandomResizedCrop.get_params(torch.empty(3, *size), [0.9, 1.0], [3 / 4, 4 / 3])
    found = augment.crops(torch.tensor(size).expand(50, 2), many[:50])
    assert found.tolist() == [list(wanted)] * 50
    assert max(size) / min(size) >= augment.WIDEST > augment.RATIO[1] / augment.SCALE[0]


@pytest.mark.parametrize("box", [(3, 5, 90, 80), (0, 0, 100, 110), (20, 30, 40, 37)], ids=str)
def test_a_crop_has_the_pixels_of_pil(box):
    picture = pictures(1, (100, 110))[0]
    found = augment.resized(picture, box, (48, 56)).permute(1, 2, 0).numpy().astype(int)
    top, left, height, width = box
    cut = Image.fromarray(picture.numpy()).crop((left, top, left + width, top + height))
    wanted = np.asarray(cut.resize((56, 48), Image.BICUBIC)).astype(int)
    assert np.abs(found - wanted).max() <= 1  # both round to whole numbers


def test_colours_are_drawn_as_open_clip_does(many):
    parts = open_clip.image_transform(32, is_train=True, aug_cfg=AUG_CFG).transforms
    jitter, grey = parts[2], parts[3]
    assert parts[0].scale == augment.SCALE and parts[0].ratio == augment.RATIO
    order, factors = augment.colours(many)
    jittered = [steps[:4] for steps in order if len(steps) >= 4]
    assert len(jittered) / N == pytest.approx(jitter.p, abs=4 * math.sqrt(0.16 / N))
    turned = sum(augment.GREY in steps for steps in order)
    assert turned / N == pytest.approx(grey.p, abs=4 * math.sqrt(0.16 / N))
    assert {steps[-1] for steps in order if len(steps) in (1, 5)} == {augment.GREY}
    counts = Counter(map(tuple, jittered))
    assert counts.keys() == set(itertools.permutations(range(4)))
    assert max(abs(count - len(jittered) / 24) for count in counts.values()) < 4 * math.sqrt(N / 24)
    torch.manual_seed(0)
    own = jitter.transf
    ranges = own.brightness, own.contrast, own.saturation, own.hue
    wanted = [ColorJitter.get_params(*ranges)[1:] for _ in range(N)]
    for one, other in zip(factors.T[:4].numpy(), np.array(wanted).T, strict=True):
        assert_same_distribution(one, other)
    assert (factors[:, augment.GREY] == 0).all()


@pytest.mark.parametrize("factor", [0.5, 0.93, 1.0, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_step_is_that_of_torchvision(name, factor):
    torch.manual_seed(0)
    images = torch.rand(5, 3, 20, 30)
    images[0] = 0.3  # no hue
    images[1, :, :9] = torch.tensor([0.0, 1.0, 1.0])[:, None, None]
    by = 0.2 * (factor - 1) if name == "hue" else factor
    wanted = torch.stack([getattr(TF, f"adjust_{name}")(image, by) for image in images])
    found = getattr(augment, f"adjust_{name}")(images.clone(), torch.full((5, 1, 1, 1), by))
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-4)  # the weights have three digits


def by_pil(picture, drawn, side):
    """What torchvision makes of a PIL picture by the same numbers."""
    ((top, left, height, width),) = augment.crops(torch.tensor([picture.shape[:2]]), drawn).tolist()
    (order,), factors = augment.colours(drawn)
    image = Image.fromarray(picture.numpy())
    size = (side, side)
    image = TF.resized_crop(image, top, left, height, width, size, InterpolationMode.BICUBIC)
    names = ("brightness", "contrast", "saturation", "hue")
    for number in order:
        if number == augment.GREY:
            image = TF.rgb_to_grayscale(image, 3)
        else:
            image = getattr(TF, f"adjust_{names[number]}")(image, factors[0, number].item())
    return TF.normalize(TF.to_tensor(image), MEAN, STD)


def test_the_whole_is_what_torchvision_makes_of_pil_pictures(many):
    """PIL cuts values to whole numbers in each of five steps, and hues to 256 of them."""
    transform = augment.Augmentation((SIDE, SIDE), MEAN, STD)
    given = pictures(40, (90, 70), (SIDE, SIDE), (60, 200))
    found = transform(given, many[:40])
    wanted = torch.stack(
        [by_pil(picture, many[i : i + 1], SIDE) for i, picture in enumerate(given)]
    )
    levels = (found - wanted).abs() * torch.tensor(STD).view(3, 1, 1) * 255
    assert levels.mean() < 1.5
    assert levels.quantile(0.99) < 8
    assert len({tuple(steps) for steps in augment.colours(many[:40])[0]}) > 20


def test_pictures_do_not_depend_on_those_beside_them(many, monkeypatch):
    transform = augment.Augmentation((24, 32), MEAN, STD)
    given = pictures(20, (30, 40), (50, 33))
    together = transform(given, many[:20])
    assert together.shape == (20, 3, 24, 32)
    alone = [transform(given[i : i + 1], many[i : i + 1]) for i in range(20)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-5)
    monkeypatch.setattr(  # as on a GPU
        augment.Augmentation, "_portions", lambda _, order, __: [list(range(len(order)))]
    )
    torch.testing.assert_close(transform(given, many[:20]), together, rtol=0, atol=1e-5)


def test_numbers_are_those_of_a_seed_a_pass_and_a_picture():
    first = augment.draw(1, 2, 3)
    assert np.array_equal(first, augment.draw(1, 2, 3))
    others = [augment.draw(*key) for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1))]
    assert not any(np.array_equal(first, other) for other in others)


def test_size_and_colours_are_those_of_the_model(demo_clip):
    found = augment.Augmentation.of(demo_clip)
    assert found.side == (64, 64)
    assert found.mean == (0.5,) * 3 and found.std == (0.27,) * 3
    white = [torch.full((80, 80, 3), 255, dtype=torch.uint8)]
    unchanged = torch.full((1, augment.DRAWN), 0.99)
    shade = torch.tensor(0.5 / 0.27).expand(1, 3, 64, 64)
    torch.testing.assert_close(found(white, unchanged), shade)
