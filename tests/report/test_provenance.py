import torch

from latteclip.report import runs


def test_benchmarks_that_are_missing_are_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"s": 1, "max_rss": 1}\n{"s": 61.5, "max_rss": "NA", "cpu_time": 98.5}\n'
    )
    files = [{"rule": r, "run": "", "path": str(tmp_path / f"{r}.jsonl")} for r in ("a", "b")]
    assert runs.job_costs(files) == [runs.JobCost("a", "", 61.5, 98.5, None, None)]


def test_a_folder_without_git_has_no_commit(tmp_path):
    assert runs.commit(str(tmp_path)) is None
    assert runs.versions()["torch"] == torch.__version__
