import re
import sys

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.tiny import ROOT, benchmark


def test_every_step_of_the_benchmark_runs(tmp_path):
    scale = benchmark("scale")
    scale.TRAINED, scale.BATCH = 6, 32
    place = scale.Place(tmp_path, 200, 5)
    for number in scale.chosen([]):
        step = scale.STEPS[number]
        if step.run is not scale.plan_jobs:  # dry runs have tests of their own
            step.run(place)()
    results = place.checkout / "results" / "scale"
    captions = pq.read_table(results / "captions" / "images.parquet")
    index = pq.read_table(results / "images.parquet")
    assert len(index) == 202
    first = index.filter(pc.invert(pc.match_substring(index["image_id"], "new_")))
    assert len(captions) == first["split"].to_pylist().count("train")
    assert (
        pq.read_metadata(results / "duplicates.parquet").num_rows == 0
    )  # by hashes alone 10
    assert (results / "report.html").is_file()
    assert (
        sorted((results / "trained" / "checkpoint").iterdir())[-1].name >= "step-00000006"
    )
    assert pq.read_table(results / "predicted.parquet").num_rows == 200
    assert len((results / "labels.csv").read_text().splitlines()) == 1 + len(captions)


def test_some_steps_of_the_benchmark_run_on_an_index_without_images(tmp_path):
    scale = benchmark("scale")
    place = scale.Place(tmp_path, 200, 5)
    for number in scale.chosen(["propagate_labels", "write_pseudo_labels"]):
        scale.STEPS[number].run(place)()
    results = place.checkout / "results" / "scale"
    assert not place.images.exists()
    assert pq.read_metadata(results / "propagated.parquet").num_rows == 60


def test_the_page_on_scale_has_the_rows_that_were_measured_and_computed():
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    rows = benchmark("outlook").rows()
    assert rows
    for row in rows:
        assert row in page


def test_host_memory_is_measured_of_all_processes(tmp_path, capsys, monkeypatch):
    memory = benchmark("host_memory")
    arguments = [
        "--workers",
        "2",
        "--images",
        "12",
        "--batch-size",
        "4",
        "--megapixels",
        "0.1",
    ]
    monkeypatch.setattr(sys, "argv", ["host_memory.py", *arguments, "timm:test_vit"])
    memory.main()
    [line] = capsys.readouterr().out.splitlines()
    before, peak, loading = (
        float(n.replace(",", "")) for n in re.findall(r" ([\d,]+),", line)[:3]
    )
    assert peak == pytest.approx(before + loading, abs=2)
    assert before > 0
    assert 0 <= loading < 4000
