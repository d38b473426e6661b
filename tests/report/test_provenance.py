import torch

from latteclip.report import provenance

DAMAGED = {"cut": b'{"s": 61', "zeros": bytes(400), "bytes": b"\xff\xfe", "number": b"7"}


def test_the_last_job_of_each_benchmark_file_counts(tmp_path, caplog):
    lines = '{"s": 1, "max_rss": 1}\n{"s": 61.5, "max_rss": "NA", "cpu_time": 98.5}\n'
    places = {
        "benchmarks/caption_images-1-of-2": ("caption_images", ""),
        "flyp/benchmarks/find_learning_rate": ("find_learning_rate", "flyp"),
        "flyp/seed3/benchmarks/finetune": ("finetune", "flyp, seed 3"),
    }
    paths = [tmp_path / f"{place}.jsonl" for place in places]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text(lines)
    (tmp_path / "benchmarks" / "empty.jsonl").touch()
    for name, content in DAMAGED.items():
        (tmp_path / "benchmarks" / f"{name}.jsonl").write_bytes(content)
    wanted = zip(paths, places.values(), strict=True)
    wanted = [
        provenance.JobCost(path, *names, 61.5, 98.5, None, None) for path, names in wanted
    ]
    assert sorted(provenance.job_costs(tmp_path), key=lambda job: job.rule) == wanted
    assert all(f"{name}.jsonl" in caplog.text for name in DAMAGED)


def test_versions_are_those_of_the_packages():
    assert provenance.versions()["torch"] == torch.__version__
