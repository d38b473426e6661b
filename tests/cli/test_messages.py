"""What a run prints first and last."""

import json
import logging
import re

import pytest
from snakemake_interface_logger_plugins.common import LogEvent
from support.image_folders import class_folders

from latteclip.cli import messages
from latteclip.config import layers
from latteclip.config.jobs import MODEL_NOTE
from latteclip.config.resolve import Run
from latteclip.core.files import write_record
from latteclip.evaluate.results import Accuracy, Audit


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Configurations of a folder with two classes."""
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "photos", n=3)
    base = {"dataset": "mine", "image_dir": "photos"}
    return lambda **given: Run(layers.defaults(project=None), {**base, **given})


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_run_begins_with_what_it_found(mine, tmp_path):
    [line] = messages.started(mine(), [])
    assert (
        line.startswith("mine: 6 ") and "classes: 2 folders" in line and "zero_shot" in line
    )
    (tmp_path / "photos" / "classes.txt").write_text("lines\nred dots\ngrids\n")
    note = MODEL_NOTE.format(model="resnet18.a1_in1k")
    given = mine(image_encoders="resnet18.a1_in1k")
    [line, fetched] = messages.started(given, [note])
    assert "3 classes in photos/classes.txt" in line
    assert "hub" in fetched and "resnet18.a1_in1k" in fetched


def test_a_run_ends_with_page_model_and_next_commands(mine, tmp_path):
    found = mine()
    page, results = "results/mine/report.html", tmp_path / "results" / "mine"
    selection = {
        "dataset": "mine",
        "method": "recommended",
        "seed": 2,
        "reason": "It is better.",
    }
    write(results / "selection.json", json.dumps(selection))
    text = "\n".join(messages.finished(found, [page]))
    assert page in text and "recommended, seed 2, in results/mine/model" in text
    assert "latteclip audit results/mine" in text
    assert "latteclip predict results/mine new-photos" in text
    run = Accuracy("recommended", 2, 0.713, 0.601, 0.802)
    said = "It is better by 3 points."
    audit = Audit("mine", "train", 90, 50, 3, 0, "p", said, [run], [])
    write_record(results / "audit.json", audit)
    for name in ("plan.parquet", "answers.json"):
        write(results / "audit" / "train" / name, "")
    text = "\n".join(messages.finished(found, [page]))
    assert "It is better by 3 points." in text and "latteclip audit" not in text
    assert "71.3 % right, 95 % interval 60.1 to 80.2, by 47 answers of audit" in text
    labels = messages.finished(found, ["results/mine/fused_labels.parquet"])
    assert "latteclip labels export results/mine" in labels[1]
    assert "latteclip teach results/mine" in labels[-1]
    model = "results/mine/image_prototypes/seed0/model"
    files = ["results/mine/fused_labels.parquet", model]
    assert f"latteclip predict {model} new-photos" in messages.finished(found, files)[-1]
    assert messages.finished(found, ["results/mine/images.parquet"]) == []
    alone = mine(method="image_prototypes", seeds=1)
    (tmp_path / model).mkdir(parents=True)
    page = f"results/mine/report{alone.suffix}.html"
    assert f"latteclip predict {model} new-photos" in messages.finished(alone, [page])[1]


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("Begun.\nerror: x is broken.\n", "error: .*flyp.*x is broken"),
        (
            "error: old\nerror: bug; --debug\nTraceback (most recent call last):\n  File\n",
            r"error: .*flyp.*bug.*job\.log",
        ),
        ("Begun.\n", r"error: .*flyp.*job\.log"),
    ],
    ids=["input", "bug", "killed"],
)
def test_a_failed_job_is_named_with_its_message(tmp_path, monkeypatch, log, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.log").write_text(log)
    wildcards = {"dataset": "mine", "method": "flyp", "seed": "1"}
    assert re.match(line, messages.failure("finetune", wildcards, ["job.log"]))


def test_what_slurm_refuses_is_its_own_message(monkeypatch):
    monkeypatch.setattr(messages, "refusals", {})
    said = "SLURM sbatch failed. The error message was 'Invalid partition'.\n    sbatch call:\n x"
    of_job = {"event": LogEvent.JOB_ERROR, "rule_name": "finetune", "jobid": 3}
    terminal = messages.ShortTerminal(lambda: False)
    for message in (said, None):
        record = logging.makeLogRecord({**of_job, "rule_msg": message})
        assert not terminal.filter(record)  # it comes last, as those of other jobs
    assert re.fullmatch("error: finetune: .*'Invalid partition'.", messages.refusals[3])
