"""A student from the labels of a finished run to the choice among its models."""

import json

import pytest
from support.tiny import write_encoder


@pytest.mark.slow
def test_a_student_is_trained_judged_and_deployed(finished_copy, tmp_path):
    network = write_encoder(tmp_path / "network")
    recipe = {"epochs": 2, "warmup_steps": 1, "batch_size": 16}
    methods = {"student": {"student": network, "finetune": recipe}}
    config = (
        "seeds=1",
        "method=zero_shot_adapted,student",
        f"methods={json.dumps(methods)}",
    )
    run = finished_copy.snakemake("--config", *config)
    assert run.returncode == 0, run.stdout
    results = finished_copy.root / "results" / "demo"
    place = results / "student" / "seed0"
    assert {"config.json", "model.safetensors", "prototypes.safetensors"} <= {
        path.name for path in (place / "model").iterdir()
    }
    metrics = json.loads((place / "metrics.json").read_text())
    assert metrics["method"] == "student" and 0 <= metrics["acc1"] <= 1
    assert "student" in (finished_copy.root / "results" / "summary.md").read_text()
    chosen = json.loads((results / "selection.json").read_text())
    assert "student" in json.dumps(chosen)
    assert "student" in (results / "report.html").read_text()
    photos = next((finished_copy.root / "resources" / "demo").rglob("*.png")).parent
    output = tmp_path / "out.csv"
    words = ("predict", str(place / "model"), str(photos), "--output", str(output))
    predicted = finished_copy.latteclip(*words)
    assert predicted.returncode == 0, predicted.stdout
    assert output.read_text().startswith("path,classname")
    again = finished_copy.snakemake("--config", *config)
    assert "train_student" not in again.stdout
