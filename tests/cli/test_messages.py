"""What a run prints first and last."""

import logging
import re
import time
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent
from support.records import fusion

from latteclip.cli import messages
from latteclip.core.files import write_record
from latteclip.labels.guarantees import Interval


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
    assert re.match(line, messages.failure("finetune", wildcards, ["job.log"], 0.0))
    refused = messages.failure("finetune", wildcards, ["job.log"], time.time() + 60)
    assert "no log" in refused  # of this run


def test_what_slurm_refuses_is_printed_and_commands_of_failed_jobs_are_not():
    lines = messages.JobLines(SimpleNamespace(runs_jobs=True))
    for msg, is_printed in (
        ("RuleException:\nCalledProcessError in file", False),
        ("Exiting because a job execution failed. Look above for error messages", False),
        ("Oh", True),
    ):
        record = logging.makeLogRecord({"event": LogEvent.ERROR, "msg": msg, "levelno": 40})
        assert lines.filter(record) == is_printed
    for said, is_printed in (
        ("SLURM sbatch failed. Invalid partition", True),
        (None, False),
    ):
        record = logging.makeLogRecord({"event": LogEvent.JOB_ERROR, "rule_msg": said})
        assert lines.filter(record) == is_printed


@pytest.mark.parametrize("right", [None, Interval(0.8, 0.7, 0.9, 60)])
def test_answers_are_asked_for_until_they_check_the_labels(tmp_path, right):
    dataset = SimpleNamespace(name="mine", folder=str(tmp_path))
    write_record(tmp_path / "fused_labels.json", fusion(labels_right=right))
    run = SimpleNamespace(datasets=[dataset], suffix="")
    lines = [*messages.finished(run, [f"{tmp_path}/fused_labels.parquet"])]
    assert any("latteclip teach" in line for line in lines) == (right is None)


@pytest.mark.parametrize("stale", [[], ["results/mine/report.html"]])
def test_a_first_run_that_fails_speaks_of_no_earlier_results(stale, monkeypatch):
    printed = []
    monkeypatch.setattr(
        messages.atexit, "register", lambda _, *lines, **__: printed.extend(lines)
    )
    machine = SimpleNamespace(prints_little=False, prints=False, failed=[])
    handlers = messages.Handlers({}, None, machine)
    handlers._stale = stale
    handlers.report_failures()
    assert ("earlier run" in "\n".join(printed)) == bool(stale)
