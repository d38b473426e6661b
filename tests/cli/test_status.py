import json
import re
from pathlib import Path

import pytest
from support.checkout import Checkout

from latteclip.cli import runs, status

SUMMARY = """\
Building DAG of jobs...
output_file\tdate\trule\tlog-file(s)\tstatus\tplan
results/summary.csv\t-\tsummarize\t-\tmissing\tupdate pending
results/a/images.parquet\tMon\tindex_images\tx.log\tok\tno update
results/a/corrupt.csv\t-\tindex_images\tx.log\tmissing\tno update
results/a/flyp/seed0/model\tMon\tfinetune\t-\tok\tno update
results/a/flyp/seed0/history.parquet\tMon\tfinetune\t-\tok\tno update
results/a/flyp/seed1/model\tMon\tfinetune\t-\tparams changed\tupdate pending
results/a/flyp/seed2/model\tMon\tfinetune\t-\tok\tupdate pending
resources/b/data\t-\tdownload_dataset\t-\tmissing\tupdate pending
resources/models/data\t-\tgenerate_textures\t-\tmissing\tupdate pending
resources/models/me--clip.json\t-\tdownload_clip\tx.log\tmissing\tupdate pending
"""
DRY_RUN = """\
[Tue Nov 24 19:59:29 2026]
rule finetune:
    input: results/a/images.parquet
    output: results/a/flyp/seed1/model, results/a/flyp/seed1/history.parquet
    reason: Params have changed since last execution: before: 1 now: 2
    wildcards: dataset=a
Shell command: latteclip finetune --settings '{"output: ": 1}'

[Tue Nov 24 19:59:29 2026]
rule finetune:
    output: results/a/flyp/seed2/model
    reason: Input files updated by another job: results/a/images.parquet
localrule download_dataset:
    output: resources/b/data
    reason: Missing output files: resources/b/data
"""


def test_a_job_is_done_only_when_all_its_outputs_are_there():
    jobs = {(job.rule, job.run): job for job in status.read_summary(SUMMARY)}
    assert jobs["finetune", "flyp, seed 0"].state == "done"
    assert jobs["finetune", "flyp, seed 1"].state == "stale"
    assert jobs["index_images", ""].state == "missing"
    assert jobs["download_dataset", ""].dataset == "b"
    assert jobs["summarize", ""].dataset == status.SHARED
    assert jobs["download_clip", ""].dataset == status.SHARED
    assert jobs["generate_textures", ""].dataset == "models"
    assert len(jobs) == 8


def test_reasons_belong_to_outputs():
    reasons = status.read_reasons(DRY_RUN)
    assert reasons["results/a/flyp/seed1/history.parquet"].startswith("Params have changed")
    assert reasons["resources/b/data"] == "Missing output files: resources/b/data"
    assert len(reasons) == 4


def test_a_dataset_is_looked_at_with_the_options_of_its_last_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = {"image_dir": "photos", "seeds": 1}
    runs.note_options({"a": "a", "b": "b"}, mine, ["conda"])
    runs.note_options({"c_64": "c"}, {"limit": 64}, [])
    asked = status._options(["a", "b", "c_64", "dtd"], [], [], [], tmp_path)
    found = [
        [json.loads(Path(word).read_text()) if word.endswith(".json") else word for word in words]
        for words in asked
    ]
    assert found == [
        ["--config", "dataset=dtd"],
        ["--configfile", {**mine, "dataset": ["a", "b"]}, "--sdm", "conda"],
        ["--configfile", {"limit": 64, "dataset": ["c"]}],
    ]
    assert list(status._options(["a"], ["seeds=2"], [], [], tmp_path)) == [
        ["--config", "seeds=2", "dataset=a"]
    ]
    assert runs.noted_datasets() == ["a", "b", "c_64"]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """A checkout in which the demo has gone as far as its index."""
    checkout = Checkout(tmp_path_factory.mktemp("indexed") / "checkout")
    run = checkout.snakemake("results/demo/images.parquet", "--quiet", "all")
    assert run.returncode == 0, run.stdout
    return checkout


def told(checkout, *arguments):
    """Lines of `latteclip status` as words."""
    run = checkout.run("latteclip", "status", *arguments)
    assert run.returncode == 0, run.stdout
    stages, _, _ = run.stdout.partition("SLURM queue")  # which this machine may have
    return [re.split(r"\s{2,}", line.strip()) for line in stages.splitlines() if line]


OPTIONS = ("--config", "seeds=2", "method=zero_shot,flyp")


def test_done_stages_and_missing_ones(indexed):
    lines = told(indexed, *OPTIONS)
    assert lines[0] == ["demo: 2 of 13 jobs done"]
    assert ["done", "generate_textures"] in lines
    assert ["done", "index_images"] in lines
    assert [line[0] for line in lines if line[-1].startswith("1 job, 0:")] == ["index_images"]
    assert ["missing", "finetune", "flyp, seeds 0, 1", "not run yet"] in lines
    assert ["missing", "evaluate_classifier", "zero_shot, seed 0", "not run yet"] in lines
    rules = [line[1] for line in lines if len(line) > 1]
    assert rules.index("index_images") < rules.index("finetune") < rules.index("evaluate")
    assert lines[-3:] == [
        ["all datasets: 0 of 2 jobs done"],
        ["missing", "summarize", "not run yet"],
        ["missing", "index_results", "not run yet"],
    ]


def test_an_edit_makes_stages_stale_and_says_why(indexed):
    splits = indexed.root / "latteclip" / "data" / "splits.py"
    kept = splits.read_bytes()
    splits.write_bytes(kept + b"\n# Edited.\n")
    try:
        lines = told(indexed, "demo", *OPTIONS)
    finally:
        splits.write_bytes(kept)
    assert ["stale", "index_images", "Updated input files: latteclip/data/splits.py"] in lines
    assert ["done", "generate_textures"] in lines


def test_changed_settings_are_leaves_and_texts():
    before = [json.dumps({"finetune": {"lr": 1e-7, "epochs": 3}, "note": "it's"}), 'A "word"; or?']
    now = [json.dumps({"finetune": {"lr": 1e-6, "epochs": 3}, "note": "it's", "n": 1}), "{}?"]
    reason = f"Params have changed: before: {','.join(map(repr, before))} now: "
    reason += ",".join(map(repr, now))
    assert (
        status.changed_settings(reason) == ': finetune.lr 1e-07 -> 1e-06, n unset -> 1, now "{}?"'
    )
    assert status.changed_settings("before: <nothing exclusive> now: 2") == ""


def test_status_changes_no_file(indexed):
    def files():
        return {
            path: path.stat().st_mtime_ns
            for path in indexed.root.rglob("*")
            if path.is_file() and ".snakemake" not in path.parts and path.suffix != ".pyc"
        }

    before = files()
    told(indexed)
    assert files() == before
