"""The commands of the tutorial run, and print what the page says."""

import os
import re
import shutil

import pytest
import tutorial
from support import warm
from support.checkout import CONFIG
from support.tiny import ROOT

PAGE = tutorial.PAGE.read_text("utf-8")
PICTURES = ROOT / "latteclip" / "demo" / "images" / "test.tar"


def outputs():
    """Return the commands of the page, each with the lines that the page has below it."""
    blocks = "".join(found[2] for found in tutorial.BLOCK.finditer(PAGE))
    for part in re.split(r"^\$ ", blocks, flags=re.MULTILINE)[1:]:
        command, *lines = part.splitlines()
        yield command, lines


def stages(lines):
    """Return the stages of "mine" that Snakemake named."""
    return set(re.findall(r"^[\d:]+  (\w+ \(mine.*\))$", "\n".join(lines), re.MULTILINE))


def test_outputs_are_cut_in_their_middle_and_bars_of_progress_left_out(tmp_path):
    printed = f" 3%|# | 1/9 [00:01<00:09]\r{tmp_path}/a\n\n" + "b\n" * 40 + "c\n"
    lines = tutorial.shown(printed, tmp_path)
    half = tutorial.FIRST - 1
    assert lines == ["a", *"b" * half, "...", *"b" * (tutorial.LAST - 1), "c"]


@pytest.mark.slow
def test_the_commands_run_in_their_order_and_print_what_the_page_says(
    finished_copy, monkeypatch
):
    """After the demo, of which the tests have a small one."""
    folder = finished_copy.root
    monkeypatch.setenv(
        "PATH", f"{warm.interpreter().parent}{os.pathsep}{os.environ['PATH']}"
    )
    shutil.copy(PICTURES, folder / "latteclip" / "demo" / "images")
    shutil.copy(ROOT / CONFIG, folder / "config")
    for command, lines in outputs():
        if command == tutorial.DEMO:
            continue
        found = tutorial.shown(tutorial.run(command, folder), folder)
        assert stages(lines) <= stages(found) or "..." in found, command
        assert bool(lines) == bool(found), command
        if lines and ("export" in command or "ls" in command.split()):
            assert re.sub(r"[\d,]+", "0", lines[0]) == re.sub(r"[\d,]+", "0", found[0])
    assert (folder / "my-clip" / "open_clip_model.safetensors").is_file()
