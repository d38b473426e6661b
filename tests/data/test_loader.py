import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from support.shards import labelled, parquet_shard, picture, tar_shard
from support.tiny import write_pictures

from latteclip.core.errors import UserError
from latteclip.data.loader import ImageFiles, batches, in_order, loader
from latteclip.data.splits import SplitSettings, read_split

CPU = torch.device("cpu")


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_the_order_of_their_keys(tmp_path, threads):
    files = ImageFiles(write_pictures(tmp_path, 4), lambda image: torch.tensor(image.size))
    found = list(batches(files, [[2, 0], [3], [1, 3]], CPU, threads))
    assert [indices.tolist() for indices, _ in found] == [[2, 0], [3], [1, 3]]
    assert found[0][1].tolist() == [[70, 64], [70, 64]]


def test_a_batch_is_decoded_while_the_one_before_it_is_in_use(tmp_path):
    decoded = [threading.Event() for _ in range(6)]

    class Noting(ImageFiles):
        def __getitem__(self, index):
            decoded[index].set()
            return index, torch.zeros(1)

    found = batches(Noting([""] * 6, None), in_order(6, 2), CPU, threads=1)
    next(found)
    assert all(event.wait(60) for event in decoded[:4])
    assert not any(event.is_set() for event in decoded[4:])


def test_what_cannot_be_decoded_ends_the_threads(tmp_path):
    before = threading.active_count()
    files = ImageFiles([*write_pictures(tmp_path, 3), "nowhere.png"], lambda image: torch.zeros(1))
    with pytest.raises(UserError, match=r"nowhere\.png"):
        list(batches(files, in_order(4, 2), CPU, threads=2))
    assert threading.active_count() == before


def test_forked_workers_read_shards(tmp_path):
    """Though this process read of them before: its threads are not theirs."""
    tar = tar_shard(tmp_path / "train.tar", labelled(range(40), form="PNG"))
    contents = [picture(n, form="PNG") for n in range(40)]
    rows = parquet_shard(tmp_path / "train.parquet", contents, [0] * 40, ["a", "b"], rows=7)
    (tmp_path / "classes.txt").write_text("a\nb")
    wanted = [np.asarray(Image.open(io.BytesIO(content))) for content in contents]
    for kind, shard in (("webdataset", tar), ("parquet", rows)):
        _, split = read_split(tmp_path, SplitSettings(kind, lists={"train": shard.name}))
        files = ImageFiles([str(tmp_path / item.path) for item in split.items], np.asarray)
        np.testing.assert_array_equal(files[3][1], wanted[3])
        keys = [range(start, 40, 8) for start in range(8)]
        for indices, images in loader(files, keys, workers=2, pinned=False, collate=_together):
            for index, image in zip(indices, images, strict=True):
                np.testing.assert_array_equal(image, wanted[index])


def _together(samples):
    indices, images = zip(*samples, strict=True)
    return torch.tensor(indices), torch.from_numpy(np.stack(images))
