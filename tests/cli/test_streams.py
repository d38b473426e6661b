import os
import subprocess
import sys

LIST = [sys.executable, "-m", "latteclip", "datasets"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


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


def test_a_full_output_is_one_sentence(tmp_path):
    status, said = run(LIST, ">/dev/full", tmp_path)
    assert status == 2
    assert said.startswith("error: ") and "space" in said
    assert said.count("\n") == 1


def test_an_output_that_nobody_reads_is_no_sentence(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        LIST, cwd=tmp_path, env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
