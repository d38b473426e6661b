import subprocess
import sys

import pytest
from tiny import write_pseudo_labels

from latteclip import cli

HEAVY = {"torch", "vllm", "transformers", "open_clip", "torchvision"}
OPTIONS_OF_FINETUNE = ["finetune", "--images", "i", "--pseudo-labels", "p", "--seed", "0"]


def heavy_imports(code):
    """What a new interpreter has imported after it ran `code`."""
    script = f"{code}\nimport sys; print(*({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.split("\n")[-2].split()


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = f"from latteclip.cli import main\ntry: main({arguments})\nexcept SystemExit: pass"
    assert heavy_imports(code) == []


def test_configuration_imports_nothing_heavy():
    assert heavy_imports("import latteclip.config") == []


def test_heavy_imports_would_be_seen():
    assert "torch" in heavy_imports("import latteclip.losses")


@pytest.mark.parametrize("command", [c.__name__.replace("_", "-") for c in cli.COMMANDS])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert command in capsys.readouterr().out


def test_bad_input_is_one_sentence_and_status_2(tmp_path, capsys):
    output, log = tmp_path / "out.parquet", tmp_path / "logs" / "log.txt"
    status = cli.main(
        [
            "caption-images",
            *("--images", str(tmp_path / "nowhere.parquet")),
            *("--prompt", "?"),
            *("--captioner", '{"engine": "vllm"}'),
            *("--output", str(output)),
            *("--log", str(log)),
        ]
    )
    assert status == cli.BAD_INPUT == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: Settings for CaptionerSettings lack the keys")
    assert printed.count("\n") == 1
    assert log.read_text() == printed
    assert not output.exists()


def test_a_missing_table_is_bad_input(tmp_path, capsys):
    status = cli.main(
        [
            "evaluate-zero-shot",
            *("--dataset", "x", "--method", "zero_shot", "--seed", "0"),
            *("--images", str(tmp_path / "nowhere.parquet")),
            *("--pseudo-labels", write_pseudo_labels(tmp_path / "p.parquet", ["a"], [0])),
            *("--predictions", str(tmp_path / "out.parquet")),
            *("--metrics", str(tmp_path / "out.json")),
        ]
    )
    assert status == 2
    printed = capsys.readouterr().err
    assert "nowhere.parquet does not exist" in printed
    assert "Traceback" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_a_bug_keeps_its_traceback_and_is_status_1(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("latteclip.report.summarize", lambda *_: 1 / 0)
    log = tmp_path / "log.txt"
    arguments = ["summarize", "m.json", "--csv", "c", "--markdown", "m", "--log", str(log)]
    assert cli.main(arguments) == 1
    printed = capsys.readouterr().err
    assert "ZeroDivisionError" in printed
    assert "ZeroDivisionError" in log.read_text()


@pytest.mark.parametrize("arguments", [[], ["caption"], ["summarize"], OPTIONS_OF_FINETUNE])
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: latteclip" in capsys.readouterr().err
