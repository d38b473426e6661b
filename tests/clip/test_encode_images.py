import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.tiny import (
    DEMO_CLIP,
    ENCODER_WIDTH,
    network_of,
    write_encoder,
    write_index,
    write_pictures,
)
from timm.data import create_transform

from latteclip.clip.encode_images import encode_images
from latteclip.config.keys import ClipSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.tables import EncoderMetadata

DEMO = f"local-dir:{DEMO_CLIP}"


class Pictures:
    """Five pictures, of which the stage writes the features."""

    def __init__(self, folder):
        self.files = write_pictures(folder / "pictures", 5)
        self.output, self.store = folder / "features.parquet", str(folder / "store")
        splits = ["train", "test", "val", "train", "train"]
        self.index = write_index(
            folder / "i.parquet", self.files, splits, [None] * 5, ["a", "b"]
        )

    def run(self, model):
        """Features [N, D] and the metadata of their table."""
        clip, output = ClipSection(), str(self.output)
        encode_images(self.index, model, clip, self.store, output, device="cpu", threads=1)
        table = tables.read(self.output)
        described = tables.read_metadata(self.output, EncoderMetadata)
        assert table["image_id"].to_pylist() == [f"{i:03d}.png" for i in range(5)]
        return torch.tensor(table["image_features"].to_pylist()), described


@pytest.fixture
def pictures(tmp_path):
    return Pictures(tmp_path)


@torch.no_grad()
def test_features_are_those_of_the_network_under_its_own_transform(pictures, tmp_path):
    name = write_encoder(tmp_path / "encoder")
    found, described = pictures.run(name)
    transform = create_transform((3, 32, 32), crop_pct=1.0, interpolation="bicubic")
    images = torch.stack(
        [transform(Image.open(file).convert("RGB")) for file in pictures.files]
    )
    wanted = F.normalize(network_of(tmp_path / "encoder")(images), dim=1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert described == EncoderMetadata(name, ENCODER_WIDTH)


def not_a_number(state):
    return {name: torch.full_like(value, torch.nan) for name, value in state.items()}


def cut(state):
    return {name: value for name, value in state.items() if "blocks.0" not in name}


def changed(**config):
    return {"change": config}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (changed(architecture=None, architectures=["DetrModel"]), "has no model"),
        (changed(model_args={"checkpoint_path": "x.pth"}), "checkpoint_path"),
        (changed(pretrained_cfg={"input_size": [3, 10**9, 8]}), r"config\.json"),
        (changed(pretrained_cfg={"crop_pct": 1e-9}), "crop_pct"),
        (changed(pretrained_cfg={"std": [1e-300] * 3}), "std"),
        (changed(architecture="vit_base_patch16_224"), "numbers"),
        ({"weights": cut}, "state_dict"),
        ({"weights": not_a_number}, "not finite"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_sentence(
    pictures, tmp_path, given, named
):
    name = write_encoder(tmp_path / "encoder", **given)
    with pytest.raises(UserError, match=named) as error:
        pictures.run(name)
    assert "\n" not in str(error.value)
    assert not pictures.output.exists()


# --- the store -----------------------------------------------------------------------------------


def test_only_images_and_models_that_are_new_are_encoded(
    pictures, tmp_path, monkeypatch, caplog
):
    """Whatever their names are; and a killed job loses only what it had not written."""
    caplog.set_level("INFO")

    def encoded():
        [number] = re.findall(r"Encoded (\d+) images", caplog.text)
        caplog.clear()
        return int(number)

    monkeypatch.setattr("latteclip.clip.feature_store.ROWS", 3)
    name = write_encoder(tmp_path / "encoder")
    wanted, _ = pictures.run(name)
    assert encoded() == 5
    found, _ = pictures.run(name)
    assert encoded() == 0 and torch.equal(found, wanted)
    new, *others = pictures.files
    shutil.copy(others[-1], others[0])  # the content of an image that is known
    Image.new("RGB", (70, 64), "red").save(new)
    pictures.files = [new, *others]
    write_index(pictures.index, pictures.files, ["train"] * 5, [None] * 5, ["c"])
    found, _ = pictures.run(name)
    assert encoded() == 1
    assert torch.equal(found[1:], wanted[[4, 2, 3, 4]])
    assert not torch.equal(found[0], wanted[0])
    pictures.run(write_encoder(tmp_path / "other", seed=1))
    assert encoded() == 4  # of two files with one content, one
    shutil.rmtree(pictures.store)
    again, _ = pictures.run(name)
    assert encoded() == 4
    assert torch.equal(again, found)  # the same bits as in other batches
