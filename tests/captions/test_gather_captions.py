import dataclasses

import pytest
from support.captioning import GROUPS, read

from latteclip.captions.gather_captions import gather_captions
from latteclip.captions.requests import shard_of


@pytest.mark.parametrize(("kind", "n"), [("images", 3), ("groups", 2)])
def test_shards_give_the_same_bytes_however_many_there_are(dataset, recorder, kind, n):
    groups = dataclasses.replace(GROUPS, groups_per_class=3)
    caption = {
        "images": dataset.caption_images,
        "groups": lambda **options: dataset.caption_groups(groups=groups, **options),
    }[kind]
    whole = dataset.folder / "whole.parquet"
    caption(output=whole, store=False)
    asked = len(recorder.requests)
    recorder.forget()
    shards = [dataset.folder / f"shards/{number}.parquet" for number in range(1, n + 1)]
    for number, path in enumerate(shards, start=1):
        rows = caption(output=path, shard=f"{number}/{n}", store=False)
        assert {shard_of(row, n) for row in rows["id"]} <= {number}
    assert len(recorder.requests) == asked
    gathered = dataset.folder / "gathered.parquet"
    gather_captions(dataset.images, [str(path) for path in shards], str(gathered))
    assert read(gathered) == read(whole)
    assert gathered.read_bytes() == whole.read_bytes()
