import logging
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
from support.tiny import write_pseudo_labels

from latteclip.cli import main, people, stages
from latteclip.cli.colours import Formatter, wanted
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.train import finetune

HEAVY = {"torch", "vllm", "transformers", "open_clip", "torchvision"}
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
OPTIONS_OF_FINETUNE = ["finetune", "--images", "i", "--pseudo-labels", "p", "--seed", "0"]


def heavy_imports(code):
    """What a new interpreter has imported after it ran `code`."""
    script = f"{code}\nimport sys; print(*({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.split("\n")[-2].split()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["finetune", "--help"],
        ["predict", "--help"],
        ["completion", "bash"],
    ],
)
def test_help_imports_nothing_heavy(arguments):
    code = f"from latteclip.cli.main import main\ntry: main({arguments})\nexcept SystemExit: pass"
    assert heavy_imports(code) == []


def test_configuration_imports_nothing_heavy():
    assert heavy_imports("import latteclip.config.configuration") == []


def test_heavy_imports_would_be_seen():
    assert "torch" in heavy_imports("import latteclip.train.objectives.losses")


@pytest.mark.parametrize("command", [*map(main._name, [*people.COMMANDS, *stages.COMMANDS])])
def test_every_command_has_help(command, capsys):
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
    assert printed.startswith("error: Settings for CaptionerSettings lack the keys")
    assert printed.count("\n") == 1
    assert log.read_text() == printed
    assert not output.exists()


def test_a_missing_table_is_bad_input(tmp_path, capsys):
    status = main.main(
        [
            "evaluate-zero-shot",
            *("--dataset", "x", "--method", "zero_shot", "--seed", "0"),
            *("--images", str(tmp_path / "nowhere.parquet")),
            *("--pseudo-labels", write_pseudo_labels(tmp_path / "p.parquet", ["a"], [0])),
            *("--predictions", str(tmp_path / "out.parquet")),
            *("--metrics", str(tmp_path / "out.json")),
            *("--judged", str(tmp_path / "judged.parquet")),
        ]
    )
    assert status == 2
    printed = capsys.readouterr().err
    assert "nowhere.parquet does not exist" in printed
    assert "Traceback" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


@pytest.fixture
def buggy(monkeypatch, tmp_path):
    """A command that runs into a bug, and its log."""
    monkeypatch.setattr("latteclip.evaluate.summarize.summarize", lambda *_: 1 / 0)
    log = tmp_path / "log.txt"
    return ["summarize", "m.json", "--csv", "c", "--markdown", "m", "--log", str(log)], log


def test_a_bug_is_one_line_and_status_1_with_its_traceback_in_the_log(buggy, capsys):
    arguments, log = buggy
    assert main.main(arguments) == 1
    assert capsys.readouterr().err == (
        "error: summarize failed (ZeroDivisionError: division by zero); --debug shows where.\n"
    )
    assert "Traceback" in log.read_text()
    assert "ZeroDivisionError" in log.read_text()


@pytest.mark.parametrize("before", [True, False])
def test_debug_brings_the_traceback_wherever_it_stands(buggy, before, capsys):
    arguments, _ = buggy
    assert main.main(["--debug", *arguments] if before else [*arguments, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_where_bad_input_was_found(tmp_path, capsys):
    arguments = ["export", str(tmp_path), str(tmp_path / "out"), "--format", "onnx"]
    assert main.main([*arguments, "--debug"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "Traceback" in printed


def test_an_interruption_is_told_and_status_130(buggy, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("latteclip.evaluate.summarize.summarize", interrupted)
    assert main.main(buggy[0]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def help_of(*arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main([*arguments, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_the_help_has_a_line_for_each_command_and_stage(capsys):
    text = help_of(capsys=capsys)
    listed = text.split("commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(map(main._name, people.COMMANDS))
    assert {"datasets", "predict", "export", "status", "doctor", "completion"} <= {
        line.split()[0] for line in listed
    }
    for line, command in zip(listed, people.COMMANDS, strict=True):
        assert line.endswith(command.__doc__)
    lines = text.split("stages, which its rules call")[1].split("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(map(main._name, stages.COMMANDS))
    assert "name a file that it writes" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_help_tells_every_exit_status(capsys):
    text = help_of(capsys=capsys).split("exit status:")[1]
    told = {int(number) for number in re.findall(r"^  (\d+) ", text, flags=re.MULTILINE)}
    assert told == {
        *(0, main.FAILED, main.BAD_INPUT, main.INTERRUPTED, 128 + signal.SIGTERM),
        *(people.SKIPPED, people.NOT_READY),
    }


def test_the_help_has_no_colour(capsys):
    assert "\033" not in help_of("predict", capsys=capsys)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"latteclip \d+\.\d+\.\d+\n", capsys.readouterr().out)


# --- completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", people.SHELLS)
def test_every_shell_gets_a_script(shell, capsys):
    assert main.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "predict" in script
    assert "--topk" in script or shell != "bash"


def completed(tmp_path, capsys, *words):
    """What bash offers after the words of a command line."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    main.main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    line = " ".join(f"'{word}'" for word in ("latteclip", *words))
    code = f"""
        source ./script
        COMP_WORDS=({line}); COMP_CWORD={len(words)}
        $(complete -p latteclip | sed 's/.*-F \\([^ ]*\\).*/\\1/') latteclip '{words[-1]}' ''
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    run = subprocess.run([bash, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_bash_completes_commands_choices_and_files(tmp_path, capsys):
    (tmp_path / "model.folder").mkdir()
    assert completed(tmp_path, capsys, "ex") == {"export"}
    assert completed(tmp_path, capsys, "export", "m", "d", "--format", "o") == {
        "open_clip",
        "onnx",
    }
    assert "model.folder" in completed(tmp_path, capsys, "predict", "mod")


# --- colours -------------------------------------------------------------------------------------


class Terminal:
    def isatty(self):
        return True


@pytest.fixture
def colourful(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_colours_are_for_terminals_that_want_them(colourful, monkeypatch):
    assert wanted(Terminal())
    assert not wanted(sys.__stdin__)
    monkeypatch.setenv("TERM", "dumb")
    assert not wanted(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wanted(Terminal())


def record(level, **extra):
    return logging.makeLogRecord({"levelno": level, "msg": "said", **extra})


def test_errors_are_red_on_a_terminal_and_plain_in_a_file(colourful):
    assert Formatter(Terminal(), tracebacks=False).format(record(logging.ERROR)) == (
        "\033[31msaid\033[0m"
    )
    assert Formatter(Terminal(), tracebacks=False).format(record(logging.INFO)) == "said"
    assert Formatter(None, tracebacks=False).format(record(logging.ERROR)) == "said"


def test_one_formatter_s_traceback_is_not_another_s():
    try:
        raise UserError("here")
    except UserError:
        found = record(logging.ERROR, exc_info=sys.exc_info())
    assert "Traceback" in Formatter(None, tracebacks=True).format(found)
    assert Formatter(None, tracebacks=False).format(found) == "said"
    assert "Traceback" in Formatter(None, tracebacks=True).format(found)


@pytest.mark.parametrize("arguments", [[], ["caption"], ["summarize"], OPTIONS_OF_FINETUNE])
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: latteclip") and printed.endswith("--help.\n")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "predict m a.jpg --threads 0",
            r"--threads: must be a whole number from 1 to \d+, not",
        ),
        ("predict m a.jpg --threads -3", r"--threads: must be .* not '-3'"),
        ("predict m a.jpg --threads 100000", r"--threads: must be .* not '100000'"),
        ("predict m a.jpg --threads 1.5", r"--threads: must be .* not '1.5'"),
        ("predict m a.jpg -k 0", r"-k/--topk: must be a whole number from 1"),
        (
            "predict m a.jpg --batch-size " + "9" * 5000,
            r"--batch-size: must be .{0,50} not '9{40}'",
        ),
        ("captions show f --n 0", r"--n: must be a whole number from 1"),
        ("labels show f -n -1", r"-n: must be a whole number from 0"),
        ("evaluate --seed -1", r"--seed: must be a whole number from 0"),
        ("predict m a.jpg --nonsense\033[31m", r"unrecognized arguments: --nonsense\\x1b"),
    ],
    ids=lambda text: text[:40],
)
def test_arguments_out_of_their_range_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments.split(" "))
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed)
    assert printed.count("\n") == 1


@pytest.mark.parametrize("place", ["", "file/log.txt"])
def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path, place, capsys):
    (tmp_path / "file").touch()
    log = tmp_path / place
    arguments = ["summarize", "m.json", "--csv", "c", "--markdown", "m", "--log", str(log)]
    assert main.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: --log {log} cannot be written (")


def test_a_file_that_the_system_refuses_is_one_sentence(buggy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "latteclip.evaluate.summarize.summarize", lambda *_: (tmp_path / "no" / "x").read_text()
    )
    assert main.main(buggy[0]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/no/x: No such file or directory; correct the path, or its permissions, "
        "and rerun.\n"
    )


def test_sigterm_unwinds_and_is_status_143(buggy, tmp_path, monkeypatch, capsys):
    def write(*_):
        with replacing(tmp_path / "half") as half:
            half.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("latteclip.evaluate.summarize.summarize", write)
    assert main.main(buggy[0]) == 143
    assert capsys.readouterr().err == "interrupted\n"
    assert not list(tmp_path.glob("*half*")) + list(tmp_path.glob(".*half*"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_spawned_process_does_not_run_the_command_again():
    module = runpy.run_module("latteclip.__main__", run_name="__mp_main__")
    assert module["main"] is main.main


@pytest.mark.parametrize(("arguments", "status"), [(["datasets"], 0), (["datasets", "none"], 2)])
def test_a_process_ends_with_what_others_have_left_for_its_end(arguments, status):
    """And without taking modules apart, which takes long after torch."""
    code = f"""
from latteclip.__main__ import process
import atexit, sys
class Loud:
    def __del__(self): print("taken apart")
loud = Loud()
atexit.register(print, "at the end")
sys.argv[1:] = {arguments}
sys.exit(process())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == status
    assert run.stdout.splitlines()[-1] == "at the end"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({ALLOCATOR: "backend:native"}, "backend:native"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, None),  # its newer name
    ],
)
def test_a_training_lets_segments_of_the_gpu_s_memory_grow_unless_told_otherwise(
    monkeypatch, given, expected
):
    found = []
    monkeypatch.setattr(
        finetune, "finetune", lambda *_, **__: found.append(os.environ.get(ALLOCATOR))
    )
    monkeypatch.setattr(stages, "from_json", lambda *_: None)
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    with mock.patch.dict(os.environ, {**environment, **given}, clear=True):
        stages.finetune(mock.MagicMock())
    assert found == [expected]
