"""The results in a storage, as `--default-storage-provider` puts them there; the rest stays."""

import json
import shutil

import pytest
from support.checkout import DEMO, edit, shrink

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("rsync") is None, reason="the plugin copies with rsync"),
]
RUN = ("--config", "method=zero_shot,latteclip", "seeds=1", "captions={'shards': 2}")


@pytest.fixture(scope="module")
def stored(new_checkout, tmp_path_factory):
    """A checkout whose results a run has put into a folder elsewhere, and how it is run."""
    checkout, elsewhere = new_checkout("stored"), tmp_path_factory.mktemp("storage")
    edit(checkout, DEMO, shrink)
    storage = ("--default-storage-provider", "fs", "--default-storage-prefix", elsewhere)

    def snakemake(*arguments):
        run = checkout.snakemake(*RUN, *storage, *arguments)
        assert run.returncode == 0, run.stdout
        return run.stdout

    snakemake()
    return checkout, elsewhere, snakemake


def test_a_storage_holds_the_results_that_a_folder_would(stored, measured_here):
    checkout, elsewhere, _ = stored
    for method in ("zero_shot", "latteclip"):
        found = json.loads((elsewhere / f"results/demo/{method}/seed0/metrics.json").read_text())
        assert found == measured_here[method]
    for name in ("results/index.html", "results/summary.md", "results/demo/selection.json"):
        assert (elsewhere / name).is_file()
    assert not [file for file in (checkout.root / "results").rglob("*") if file.is_file()]


def test_images_and_answers_stay_in_the_working_folder(stored):
    checkout, elsewhere, _ = stored
    resources = checkout.root / "resources" / "demo"
    assert (resources / "data" / "images").is_dir()
    assert list((resources / "captions" / "images").iterdir())
    assert not (elsewhere / "resources").exists()


def test_a_second_run_has_nothing_to_do(stored):
    assert "Nothing to be done" in stored[2]()
