"""captions.shards: auto."""

import pytest

from latteclip.config import layers, shards
from latteclip.config.configuration import Configuration


@pytest.mark.parametrize(
    ("gpus", "captioner", "expected"),
    [
        (1, {}, 1),
        (4, {}, 4),
        (4, {"tensor_parallel_size": 2}, 2),
        (1, {"tensor_parallel_size": 2}, 1),
        (4, {"engine": "openai"}, 1),
    ],
)
def test_as_many_jobs_caption_as_gpus_are_free_and_later_runs_do_so_too(
    tmp_path, monkeypatch, gpus, captioner, expected
):
    monkeypatch.chdir(tmp_path)
    files = layers.defaults(project=None)
    first = Configuration(files, {"captioner": captioner}, gpus=gpus).shards("dtd")
    assert first == expected
    shards.note("dtd", first)
    for later in (1, 8):
        found = Configuration(files, {"captioner": captioner}, gpus=later)
        assert found.shards("dtd") == expected
        assert ("dtd" in found.sharded()) == (expected > 1)
    assert Configuration(files, {"captions": {"shards": 3}}, gpus=8).shards("dtd") == 3
