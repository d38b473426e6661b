"""What a run asks, before anything is asked, and what a whole run takes by its limited run."""

import json
import logging

import pyarrow as pa
import pytest

from latteclip.captions.answers import AnswersMetadata
from latteclip.cli import estimate, main
from latteclip.config import layers
from latteclip.config.resolve import Run
from latteclip.core import run_options, tables
from latteclip.core.tables import IndexMetadata
from latteclip.core.terminal import log_work

SERVER = {"engine": "openai", "model": "m"}
LETTERS = {"kind": "multiple_choice"}
ALONE = {"dataset": "demo", "method": "zero_shot,image_prototypes"}  # captions of images
N = 1500  # training images of the demo


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, schema, metadata, **columns):
    n = len(next(iter(columns.values()), ()))
    nothing = {column.name: pa.nulls(n, column.type) for column in schema}
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write(path, nothing | columns, schema, metadata)


# --- what is asked -------------------------------------------------------------------------------


def plan(**given):
    """What the dry run prints below its headline."""
    [dataset] = Run(layers.defaults(project=None), {**ALONE, **given}).datasets
    asked = [each.path for each in dataset.answer_tables]
    head, *lines = estimate.lines(dataset, asked)
    assert dataset.name in head
    return [line.strip() for line in lines]


@pytest.mark.parametrize(("most", "n"), [(None, f"{N:,}"), (20, "20")])
def test_requests_are_counted(most, n):
    [line] = plan(captioner={**SERVER, "max_images": most})
    assert line.startswith(
        f"captions of images by m: at most {n} questions, tokens not known"
    )


def test_a_limited_run_asks_about_its_images_alone(folder):
    for number in range(9):
        (folder / f"{number}.jpg").touch()
    given = {"dataset": "mine", "image_dir": str(folder), "captioner": SERVER}
    [line] = plan(**given, limit=4)
    assert "at most 4 questions" in line


def test_the_largest_limited_run_of_the_model_tells_the_tokens(folder):
    given = {"captioner": SERVER, "scores": {**LETTERS, "max_images": 750}}
    of_demo = {"train": 9}
    runs = {"demo_8": "other", "demo_64": "m", "demo_128": "other", "demo_2024": "m"}
    for place, model in runs.items():
        used = {"questions": 4, "tokens_read": 400, "tokens_written": 8}
        metadata = AnswersMetadata(model, **used)
        path = folder / "results" / place / "class_scores.parquet"
        write(path, tables.CLASS_SCORES, metadata)
        # The last is no limited run, but of another dataset.
        index = IndexMetadata([], drawn_from=None if place == "demo_2024" else of_demo)
        write(path.with_name("images.parquet"), tables.IMAGES, index)
    [line] = plan(**given)
    assert "at most 750 questions, about 75,000 tokens read and 1,500 written" in line
    assert "demo_64" in line


# --- what a whole run takes ----------------------------------------------------------------------

CONFIG = {
    "method": "zero_shot,flyp,image_prototypes",
    "seeds": 1,
    "finetune": {"batch_size": 32, "epochs": 2},
}
JOBS = (  # path of the benchmark, seconds, GPUs
    ("benchmarks/index_images", 10, 0),
    ("benchmarks/pseudo_label_images", 12, 1),
    ("benchmarks/caption_images", 200, 2),
    ("benchmarks/select_model", 2, 0),
    ("image_prototypes/seed0/benchmarks/evaluate_classifier", 2, 0),
    ("flyp/seed0/benchmarks/finetune", 16, 1),
)
LOGS = {
    "logs/index_images": [2.0],
    "logs/pseudo_label_images": [3.0, 1.0],
    "logs/caption_images": [20.0],
    "flyp/seed0/logs/finetune": [8.0],
}


@pytest.fixture
def limited(folder, caplog):
    """A limited run of 64 of 640 training and 64 of 1,280 test images, with what it took."""
    results = folder / "results" / "demo_64"
    run_options.note_options({"demo_64": "demo"}, {**CONFIG, "limit": 64})
    whole = IndexMetadata(["a", "b"], drawn_from={"train": 640, "test": 1280})
    splits = ["train"] * 64 + ["test"] * 64
    write(results / "images.parquet", tables.IMAGES, whole, split=splits)
    for name, seconds, gpus in JOBS:
        path = results / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"s": seconds, "resources": {"gpu": gpus}}))
    for name, work in LOGS.items():
        path = results / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        with caplog.at_level("INFO"):
            caplog.clear()
            for seconds in work:
                log_work(logging.getLogger("latteclip"), "Did it", seconds)
        path.write_text(caplog.text)


def test_a_stage_grows_without_the_time_of_loading(limited, capsys):
    assert main.main(["status", "demo", "--estimate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    hours = {words[0]: words[-2] for line in lines if (words := line.split())[-1:] == ["h"]}
    seconds = {
        "index_images": 8 + 15 * 2,  # 1,920 is 15 x 128
        "pseudo_label_images": 8 + 15 * 4,
        "caption_images": 180 + 10 * 20,  # 20 s of asking
        "finetune": 8 + 7 * 8,  # 21 steps an epoch in place of 3
        "evaluate_classifier": 2,
        "select_model": 2,  # no longer than a job takes to start
    }
    seconds["in"] = sum(seconds.values())  # in all
    assert hours == {name: f"{value / 3600:.2f}" for name, value in seconds.items()}
    assert "1,920 images" in lines[0] and any("640 questions" in line for line in lines)
    assert any("disk: " in line and "results/demo" in line for line in lines)
