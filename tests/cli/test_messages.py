"""What a run prints first and last."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent
from support.image_folders import class_folders
from support.records import fusion

from latteclip.cli import messages
from latteclip.config import layers
from latteclip.config.resolve import Run
from latteclip.labels.fusion_report import NAME, write_fusion_report
from latteclip.labels.guarantees import Interval


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Configurations of a folder with two classes."""
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "photos", n=3)
    base = {"dataset": "mine", "image_dir": "photos"}
    return lambda **given: Run(layers.defaults(project=None), {**base, **given})


def test_a_run_ends_with_what_it_made_and_next_commands(mine):
    results, labels = "results/mine", "results/mine/fused_labels.parquet"
    model = f"{results}/image_prototypes/seed0/model"
    Path(results).mkdir(parents=True)
    right = Interval(0.713, 0.6, 0.8, 50)
    write_fusion_report(Path(results, NAME), fusion(labels_right=right))
    text = "\n".join(messages.finished(mine(), [f"{results}/report.html", labels, model]))
    commands = "latteclip teach", "latteclip labels export"
    for words in ("report.html", labels, "71.3 %", *commands):
        assert words in text
    assert f"latteclip predict {model} new-photos" in text
    assert [*messages.finished(mine(), [f"{results}/images.parquet"])] == []


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("Begun.\nerror: x is broken.\n", "error: .*flyp.*x is broken"),
        (
            "error: old\nerror: bug\nTraceback (most recent call last):\n  File\n",
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


def test_a_run_prints_a_line_for_each_job_and_what_slurm_refuses(capsys):
    lines = messages.JobLines(SimpleNamespace(runs_jobs=True))
    made = {"event": LogEvent.JOB_INFO, "rule_name": "finetune", "wildcards": {"seed": "1"}}
    assert not lines.filter(logging.makeLogRecord(made))
    assert "finetune (seed 1)" in capsys.readouterr().err
    for said, is_printed in (
        ("SLURM sbatch failed. Invalid partition", True),
        (None, False),
    ):
        record = logging.makeLogRecord({"event": LogEvent.JOB_ERROR, "rule_msg": said})
        assert lines.filter(record) == is_printed
