import os
from pathlib import Path

import pytest
from PIL import Image
from support.captioning import read
from support.tiny import write_pictures

from latteclip.captions.caption import gather_captions
from latteclip.captions.engine import Response
from latteclip.captions.questions import shard_of
from latteclip.core.errors import UserError


def test_added_and_changed_images_alone_are_asked(dataset, recorder):
    dataset.caption_images()
    recorder.forget()
    for file in write_pictures(dataset.folder / "more", 3, seed=9):
        added = Path(file).with_name(f"0010{Path(file).name}")
        os.rename(file, added)
        dataset.files.insert(2, str(added))
    Image.new("RGB", (9, 9), (1, 2, 3)).save(dataset.files[8])
    dataset.index(dataset.files)
    columns = dataset.caption_images()
    assert len(recorder.requests) == 4
    assert len(columns["id"]) == 10
    assert "What? 1 2 3" in columns["caption"]


def test_another_commit_of_a_model_of_the_hub_is_asked_again(
    dataset, recorder, monkeypatch, tmp_path
):
    for commit in ("a", "b", "b"):
        monkeypatch.setattr(
            "huggingface_hub.hf_hub_download",
            lambda model, name, revision, commit=commit: str(tmp_path / commit / name),
        )
        dataset.caption_images()
    assert len(recorder.requests) == 2 * 7


def test_a_renamed_image_and_a_twin_are_not_asked(dataset, recorder):
    twin = Path(dataset.files[5])
    twin.write_bytes(Path(dataset.files[1]).read_bytes())
    dataset.index(dataset.files)
    columns = dataset.caption_images()
    assert len(recorder.requests) == 6
    assert columns["caption"][5] == columns["caption"][1]
    recorder.forget()
    renamed = twin.with_name("zzz.png")
    twin.rename(renamed)
    dataset.index([*dataset.files[:5], *dataset.files[6:], str(renamed)])
    assert dataset.caption_images()["id"][-1] == "zzz.png"
    assert recorder.requests == []


def test_empty_answers_are_counted_and_cut_ones_are_captions(dataset, recorder):
    texts = {1: "", 2: "A long"}

    def reply(request):
        text = texts.get(request.key, "Good.")
        return Response(text, "length" if "ong" in text else "stop", 5)

    recorder.reply = reply
    columns = dataset.caption_images(max_failed=0.2)
    assert columns["caption"][:3] == ["Good.", "", "A long"]
    assert columns["finish_reason"][:3] == ["stop", "stop", "length"]
    with pytest.raises(UserError, match=r"captioner\.max_failed") as refused:
        dataset.caption_images()
    assert "None" not in str(refused.value)


# --- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "max_images"), [(3, None), (2, 4)])
def test_shards_give_the_same_bytes_however_many_there_are(
    dataset, recorder, n, max_images
):
    def caption(**options):
        return dataset.caption_groups(max_images=max_images, **options)

    whole = dataset.folder / "whole.parquet"
    caption(output=whole, store="of the whole")
    asked = len(recorder.requests)
    assert asked == (max_images or 7)
    recorder.forget()
    shards = [dataset.folder / f"shards/{number}.parquet" for number in range(1, n + 1)]
    for number, path in enumerate(shards, start=1):
        rows = caption(output=path, shard=f"{number}/{n}", store="of shards")
        assert {shard_of(row, n) for row in rows["id"]} <= {number}
    assert len(recorder.requests) == asked
    gathered = dataset.folder / "gathered.parquet"
    gather_captions(dataset.images, [str(path) for path in shards], str(gathered))
    assert read(gathered) == read(whole)
    assert gathered.read_bytes() == whole.read_bytes()


# --- worker processes ----------------------------------------------------------------------------


def test_an_image_that_is_no_image_is_named(dataset, recorder):
    """Also one that changed since it was indexed."""
    Image.new("RGB", (9, 9)).save(dataset.files[3])
    with pytest.raises(UserError, match=f"{dataset.files[3]}.*run the workflow"):
        dataset.caption_images()
    Path(dataset.files[3]).write_bytes(b"no image")
    dataset.index(dataset.files)
    with pytest.raises(UserError, match=dataset.files[3]):
        dataset.caption_images()
