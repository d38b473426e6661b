"""The results in a storage, as `--default-storage-provider` puts them there; the rest stays."""

import json
import shutil

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("rsync") is None, reason="the plugin copies with rsync"
    ),
]
RUN = ("--config", "method=zero_shot,latteclip", "seeds=1")


def test_a_storage_holds_the_results_that_a_folder_would(finished_copy, tmp_path):
    root, elsewhere = finished_copy.root, tmp_path / "storage"
    expected = {
        path.relative_to(root): json.loads(path.read_text())
        for path in root.glob("results/demo/*/seed0/metrics.json")
        if "flyp" not in path.parts
    }
    assert len(expected) == 2
    shutil.rmtree(root / "results")
    command = (
        *RUN,
        "--default-storage-provider",
        "fs",
        "--default-storage-prefix",
        elsewhere,
    )
    run = finished_copy.snakemake(*command)
    assert run.returncode == 0, run.stdout
    for path, metrics in expected.items():
        assert json.loads((elsewhere / path).read_text()) == metrics
    for name in ("results/index.html", "results/summary.md", "results/demo/selection.json"):
        assert (elsewhere / name).is_file()
    assert not [file for file in (root / "results").rglob("*") if file.is_file()]
    assert not (elsewhere / "resources").exists()  # images and answers stay
    assert "Nothing to be done" in finished_copy.snakemake(*command).stdout
