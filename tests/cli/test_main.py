import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latteclip.cli import main

HEAVY = {"torch", "vllm", "transformers", "open_clip", "torchvision"}
SUMMARIZE = ("summarize", "m.json", "--baseline", "zero_shot", "--csv", "c")
SUMMARIZE += ("--markdown", "m", "--asked", "[]", "--published", "[]")


def test_help_and_what_a_plan_imports_are_light():
    script = f"""if True:
        import sys
        from latteclip.cli import main, messages, rules
        from latteclip.config import checks, layers
        from latteclip.config.resolve import Run
        main.parser()
        checks.refuse_unready(Run(layers.defaults(project=None), {{}}))
        print(*({HEAVY!r} & set(sys.modules)))"""
    assert_prints_nothing(script)


def test_what_the_processes_that_read_images_import_is_light():
    """Each imports the module of its job again."""
    heavy = HEAVY | {"pandas", "scipy"}
    assert_prints_nothing(f"""if True:
        import sys
        from latteclip.captions import caption
        from latteclip.data import index_images
        print(*({heavy!r} & set(sys.modules)))""")


def test_wrong_arguments_are_refused_before_anything_heavy_is_imported(tmp_path):
    for name in ("open_clip_config.json", "prototypes.safetensors", "a.jpg"):
        (tmp_path / name).touch()
    wrong = [
        "predict missing a.jpg",
        "predict . missing.jpg",
        "predict . a.jpg --output a.txt",
        "predict . a.jpg --unknown",
        "predict . a.jpg --abstain 0.1",
        "export missing out --format onnx",
        "export . out --format open_clip --abstain 0.1",
        "export . . --format onnx",
        "labels export missing --format csv --output a.csv",
        "labels export . --format csv --output a.parquet",
        "teach missing",
        "teach . --answers missing.json",
        "audit missing",
        "classes missing",
        "rename-class missing a b",
    ]
    heavy = HEAVY | {"pandas", "scipy"}
    script = f"""if True:
        import sys
        from latteclip.cli import main
        for words in {wrong!r}:
            if main.main(words.split()) != main.BAD_INPUT:
                print(words)
        print(*({heavy!r} & set(sys.modules)))"""
    assert_prints_nothing(script, cwd=tmp_path)


def assert_prints_nothing(script, **options):
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, **options)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []


def test_every_command_has_help(capsys):
    names = [name.replace("_", "-") for name in (*main.COMMANDS, *main.STAGES)]
    for command in names:
        with pytest.raises(SystemExit) as caught:
            main.main([command, "--help"])
        assert caught.value.code == 0
        assert command in capsys.readouterr().out


def test_bad_input_is_one_sentence_and_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "logs" / "log.txt"
    assert main.main([*SUMMARIZE, "--log", str(log)]) == main.BAD_INPUT == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(r"error: .*m\.json.*\n", printed)
    assert log.read_text() == printed


def test_a_bug_is_a_line_and_a_traceback_which_the_log_alone_has_in_a_run(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr("latteclip.report.summarize.read_object", lambda *_: 1 / 0)
    log = tmp_path / "log.txt"
    arguments = [*SUMMARIZE, "--log", str(log)]
    assert main.main(arguments) == 1
    printed = capfd.readouterr().err
    assert re.match("error: .*ZeroDivisionError", printed) and "Traceback" in printed
    assert log.read_text() == printed
    script = f"""if True:
        from latteclip.cli import main
        from latteclip.report import summarize
        summarize.read_object = lambda *_: 1 / 0
        main.main({arguments!r})"""
    monkeypatch.setenv("LATTECLIP_SHORT", "1")
    subprocess.run([sys.executable, "-c", script], check=True)
    assert capfd.readouterr().err == ""  # the run prints it when it ends
    assert re.search("error: .*ZeroDivisionError(.|\n)*Traceback", log.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("summarize", "required"),
        ("predict m a.jpg --threads 1.5", r"--threads: .*1\.5"),
        ("predict m a.jpg -k 0", "-k"),
        ("labels export results --max-error 1", "--max-error"),
        ("teach results --budget 0", "--budget"),
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


# --- standard output ------------------------------------------------------------------------------


def run_with(stdout):
    command = [sys.executable, "-m", "latteclip", "datasets"]
    options = {"stderr": subprocess.PIPE, "text": True, "check": False}
    return subprocess.run(command, stdout=stdout, **options)


def test_a_standard_output_that_is_full_is_one_sentence():
    with Path("/dev/full").open("w") as full:
        run = run_with(full)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert re.match("error: .*space", run.stderr)


def test_an_output_that_nobody_reads_is_no_sentence():
    reading, writing = os.pipe()
    os.close(reading)
    run = run_with(writing)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, "")


# --- engines that a command started ---------------------------------------------------------------

# A process that starts another one, as vLLM does, and is then told to end.
STARTS = """
import multiprocessing, os, signal, sys
from latteclip.core import errors

def goes_on(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    signal.pause()

errors.GRACE = 0.1
context = multiprocessing.get_context("fork")
ready = context.Event()
with errors.ending_in_order("Nothing."):
    child = context.Process(target=goes_on, args=(ready,))
    child.start()
    ready.wait()
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_an_engine_that_goes_on_is_gone_when_its_job_has_ended():
    run = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True)
    assert run.returncode == 128 + signal.SIGTERM, run.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(run.stdout), 0)
