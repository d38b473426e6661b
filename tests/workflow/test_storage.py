"""The results in a storage, as `--default-storage-provider` puts them there; the rest stays."""

import shutil

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("rsync") is None, reason="the plugin copies with rsync"
    ),
]


def test_a_storage_holds_the_results_that_a_folder_would(finished_copy, tmp_path):
    root, elsewhere = finished_copy.root, tmp_path / "storage"
    metrics = "results/demo/zero_shot/seed0/metrics.json"
    expected = (root / metrics).read_text()
    shutil.rmtree(root / "results")
    storage = ("--default-storage-provider", "fs", "--default-storage-prefix", elsewhere)
    command = ("--config", "method=zero_shot,zero_shot_adapted", *storage)
    finished_copy.ran(*command)
    assert (elsewhere / metrics).read_text() == expected
    for name in ("results/summary.md", "results/demo/selection.json"):
        assert (elsewhere / name).is_file()
    assert not [file for file in (root / "results").rglob("*") if file.is_file()]
    assert not (elsewhere / "resources").exists()  # images and answers stay
    assert "Nothing to be done" in finished_copy.ran(*command)
