import os
import subprocess
import sys

import pytest

LIST = [sys.executable, "-m", "latteclip", "datasets"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
HELP = [sys.executable, "-m", "latteclip", "--help"]


def run(command, redirection, folder):
    """The status and the standard error of a command under a shell's redirection."""
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *command],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [LIST, HELP])
def test_a_full_output_is_one_sentence(command, tmp_path):
    status, said = run(command, ">/dev/full", tmp_path)
    assert status == 2
    assert said.startswith("error: ") and "space" in said
    assert said.count("\n") == 1


def test_a_closed_output_is_one_sentence(tmp_path):
    assert run(LIST, ">&-", tmp_path) == (
        2,
        "error: The standard output is closed; open it, or name a file for the output.\n",
    )


def test_all_streams_closed_is_a_status_alone(tmp_path):
    """And no file that is opened takes the number of one of them."""
    script = (
        "from latteclip.cli import streams; streams.open_closed(); "
        "file = open('x', 'w'); assert file.fileno() > 2; import sys; assert sys.stdin.read() == ''"
    )
    assert run([sys.executable, "-c", script], "<&- >&- 2>&-", tmp_path) == (0, "")
    assert run(LIST, "<&- >&- 2>&-", tmp_path) == (2, "")


def test_an_output_that_nobody_reads_is_no_sentence(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        LIST, cwd=tmp_path, env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_standard_error_changes_no_status(tmp_path):
    status, _ = run([*LIST, "nonsense"], "2>/dev/full", tmp_path)
    assert status == 2
