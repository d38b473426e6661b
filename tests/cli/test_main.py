import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from unittest import mock

import pytest

from latteclip.cli import arguments, commands, main
from latteclip.core.files import replacing
from latteclip.train import finetune

HEAVY = {"torch", "vllm", "transformers", "open_clip", "torchvision"}
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
SUMMARIZE = ("summarize", "m.json", "--baseline", "b", "--csv", "c", "--markdown", "m")


def heavy_imports(code):
    """What a new interpreter has imported after it ran `code`."""
    script = f"{code}\nimport sys; print(*({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.split("\n")[-2].split()


@pytest.mark.parametrize(
    "code",
    [
        "from latteclip.cli.main import main; main(['completion', 'bash'])",
        "import latteclip.config.configuration",
    ],
)
def test_help_and_configuration_import_nothing_heavy(code):
    assert heavy_imports(code) == []


def test_every_command_has_help(capsys):
    names = [*commands.COMMANDS, *commands.STAGES]
    for command in map(main._dashed, names):
        with pytest.raises(SystemExit) as caught:
            main.main([command, "--help"])
        assert caught.value.code == 0
        assert command in capsys.readouterr().out


def test_bad_input_is_one_sentence_and_status_2(tmp_path, capsys):
    output, log = tmp_path / "out.parquet", tmp_path / "logs" / "log.txt"
    status = main.main(
        [
            "caption-images",
            *("--images", str(tmp_path / "nowhere.parquet")),
            *("--prompt", "?"),
            *("--captioner", '{"engine": "vllm"}'),
            *("--output", str(output)),
            *("--log", str(log)),
        ]
    )
    assert status == main.BAD_INPUT == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert log.read_text() == printed
    assert not output.exists()


@pytest.fixture
def buggy(monkeypatch, tmp_path):
    """A command that runs into a bug, and its log."""
    monkeypatch.setattr("latteclip.evaluate.summary.read_results", lambda *_: 1 / 0)
    log = tmp_path / "log.txt"
    return [*SUMMARIZE, "--log", str(log)], log


def test_a_bug_is_one_line_and_status_1_with_its_traceback_in_the_log(buggy, capsys):
    arguments, log = buggy
    assert main.main(arguments) == 1
    assert re.fullmatch("error: .*ZeroDivisionError.*--debug.*\n", capsys.readouterr().err)
    assert "Traceback" in log.read_text()
    assert "ZeroDivisionError" in log.read_text()


@pytest.mark.parametrize("before", [True, False])
def test_debug_brings_the_traceback_wherever_it_stands(buggy, before, capsys):
    arguments, _ = buggy
    assert main.main(["--debug", *arguments] if before else [*arguments, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_is_told_and_status_130(buggy, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("latteclip.evaluate.summary.read_results", interrupted)
    assert main.main(buggy[0]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("summarize", "required"),
        ("predict m a.jpg --threads 1.5", r"--threads: .*1\.5"),
        *((f"predict m a.jpg --threads {n}", "--threads") for n in (0, 100000)),
        *((f"predict m a.jpg {option} 0", option) for option in ("-k", "--batch-size")),
        ("evaluate --seed -1", "--seed"),
        ("labels export results --max-error 1", "--max-error"),
        ("teach results --offline a --answers b", "--answers"),
        ("teach results --budget 0", "--budget"),
        ("audit results --budget -5", r"--budget: .*-5"),
        ("predict m a.jpg --nonsense\033[31m", r"--nonsense\\x1b"),
    ],
    ids=lambda text: text[:40],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments.split(" "))
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed)
    assert printed.startswith("error: latteclip") and printed.endswith("--help.\n")
    assert printed.count("\n") == 1


def test_a_file_that_the_system_refuses_is_one_sentence(
    buggy, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "latteclip.evaluate.summary.read_results",
        lambda *_: (tmp_path / "no" / "x").read_text(),
    )
    assert main.main(buggy[0]) == 2
    assert re.fullmatch(f"error: .*{tmp_path}/no/x.*\n", capsys.readouterr().err)


def test_sigterm_unwinds_and_is_status_143(buggy, tmp_path, monkeypatch, capsys):
    def write(*_):
        with replacing(tmp_path / "half") as half:
            half.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("latteclip.evaluate.summary.read_results", write)
    assert main.main(buggy[0]) == 143
    assert capsys.readouterr().err == "interrupted\n"
    assert not list(tmp_path.glob("*half*")) + list(tmp_path.glob(".*half*"))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("own", [None, "backend:native"])
def test_a_training_lets_segments_of_the_gpu_s_memory_grow_by_default(monkeypatch, own):
    settings = []
    monkeypatch.setattr(
        finetune, "finetune", lambda: settings.append(os.environ.get(ALLOCATOR))
    )
    environment = {
        name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name
    }
    environment |= {ALLOCATOR: own} if own else {}
    with mock.patch.dict(os.environ, environment, clear=True):
        arguments.run("latteclip.train.finetune", "finetune", Namespace())
    assert settings == [own or "expandable_segments:True"]


# --- standard output ------------------------------------------------------------------------------

LIST = [sys.executable, "-m", "latteclip", "datasets"]


def test_a_full_output_is_one_sentence():
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(LIST, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert re.match("error: .*space", run.stderr)


def closed(descriptor, *words):
    """A run of a command that finds a standard stream closed."""
    command = [sys.executable, "-m", "latteclip", *words]
    options = {"stderr": subprocess.PIPE, "text": True, "check": False}
    return subprocess.run(command, preexec_fn=lambda: os.close(descriptor), **options)


def test_a_closed_stream_is_one_sentence(tmp_path):
    for run in (closed(1, "datasets"), closed(0, "predict", str(tmp_path), "-")):
        assert (run.returncode, run.stderr.count("\n")) == (2, 1)
        assert re.match("error: (The standard output|No image)", run.stderr)


def test_an_output_that_nobody_reads_is_no_sentence():
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(LIST, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, "")
