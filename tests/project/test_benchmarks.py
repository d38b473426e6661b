"""Each benchmark runs at its smallest size: a change of an interface breaks none unseen."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scale

from latteclip.core import tables

ROOT = Path(__file__).parents[2]
SMALL = ("--encoder", "ViT-S-32-alt", "--pairs", "1", "--threads", "1", "--batch", "4")
# Of each file: arguments, where SETS are answers of models and RESULTS those of a run, and the
# beginning of a line that it prints at its end.
RUNS = {
    "captions.py": [
        (("--images", "4", "--rounds", "1"), "CPU time of the engine's process"),
        (("--memory", "4"), "4 images: "),
    ],
    "discover.py": [(("SETS", "--json", "found.json"), "| small caption |")],
    "labels.py": [(("RESULTS", "--seeds", "1"), "| 2 images a class |")],
    "predict.py": [((*SMALL, "--images", "4", "--size", "64", "48"), "CPU time an image")],
    "real_models.py": [
        (("SETS", "--answers", "--drawings", "1", "--json", "found.json"), "| small: ")
    ],
    "teach.py": [(("RESULTS", "--drawings", "1"), "20 %, test images")],
    "train_step.py": [(SMALL, "share of a step spent waiting")],
}


@pytest.fixture
def sets(tmp_path):
    """Answers of a captioner and of a labeller about 60 images of 3 classes, and features."""
    names = ["tabby cat", "red fox", "barn owl"]
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(size=(3, 16))[labels] + 0.1 * rng.normal(size=(60, 16))
    rows = [
        {
            "split": "test" if number < 45 else "val",
            "label": int(label),
            "class": names[label],
            "caption": f"a {names[label]} in the grass",
            "model": {"What is it?": names[(label + (number % 5 == 0)) % 3]},
        }
        for number, label in enumerate(labels)
    ]
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "small.jsonl").write_text("\n".join(map(json.dumps, rows)))
    np.save(folder / "small_clip_vitb32.npy", features.astype(np.float16))
    return folder


def test_every_benchmark_is_run():
    assert {*RUNS, "scale.py"} == {path.name for path in (ROOT / "benchmarks").glob("*.py")}


@pytest.mark.slow
def test_the_steps_of_scale_work_one_after_another(tmp_path):
    """But for the training, whose log has no step before 10 s have passed, twice."""
    place = scale.Place(tmp_path, 120, n_classes=6, steps=2)
    for step, _ in scale.STEPS:
        if step is not scale.finetune:
            step(place)()
    index = tables.read(place.file("images.parquet"))
    labels = tables.read(place.file("fused_labels.parquet"))
    assert len(index) == 120 and len(labels) == index["split"].to_pylist().count("train")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [(name, *run) for name, runs in RUNS.items() for run in runs],
    ids=lambda value: value[0] if isinstance(value, tuple) else value[:20],
)
def test_a_benchmark_prints_its_figures(name, arguments, line, finished, sets, tmp_path):
    places = {"SETS": sets, "RESULTS": finished.root / "results" / "demo"}
    words = [places.get(word, word) for word in arguments]
    program = [sys.executable, ROOT / "benchmarks" / name]
    run = finished.run(*program, *words, cwd=tmp_path)
    assert run.returncode == 0, run.stdout
    assert any(text.startswith(line) for text in run.stdout.splitlines()), run.stdout
    if "--json" in arguments:
        found = json.loads((tmp_path / "found.json").read_text())
        assert any(row.startswith("small") for row in found)
