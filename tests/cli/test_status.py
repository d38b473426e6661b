import re

from latteclip.cli import status
from latteclip.core import run_options


def test_a_dataset_is_looked_at_with_the_options_of_its_last_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = {"image_dir": "photos", "seeds": 1, "captioner": {"revision": None}}
    run_options.note_options({"a": "a", "b": "b"}, mine)
    run_options.note_options({"c_64": "c"}, {"limit": 64})
    of_two = ["image_dir=photos", "seeds=1", 'captioner={"revision": null}']
    assert list(status._options(["a", "b", "c_64", "dtd"], [], [])) == [
        ["--config", *sorted(of_two), 'dataset=["a", "b"]'],
        ["--config", "limit=64", 'dataset=["c"]'],
        ["--config", 'dataset=["dtd"]'],
    ]
    given = status._options(["a"], ["seeds=2"], [])
    assert list(given) == [["--config", "seeds=2", 'dataset=["a"]']]


def files_of(root):
    return {
        path: path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file() and ".snakemake" not in path.parts and path.suffix != ".pyc"
    }


def test_stages_are_done_stale_or_missing_and_the_reason_follows(finished_copy):
    with (finished_copy.root / "latteclip" / "data" / "splits.py").open("a") as file:
        file.write("\n# Edited.\n")
    before = files_of(finished_copy.root)
    words = ("status", "--config", "seeds=2", "method=zero_shot,flyp")
    run = finished_copy.latteclip(*words)
    assert run.returncode == 0, run.stdout
    assert files_of(finished_copy.root) == before
    stages, _, _ = run.stdout.partition("SLURM queue")  # which this machine may have
    lines = [re.split(r"\s{2,}", line.strip()) for line in stages.splitlines() if line]
    assert re.match(r"demo: \d+ of 11 jobs done", lines[0][0])
    assert ["stale", "index_images", "settings or code changed"] in lines
    assert ["stale", "finetune", "flyp, seed 0", "an earlier stage will run"] in lines
    assert ["missing", "finetune", "flyp, seed 1", "not run yet"] in lines
