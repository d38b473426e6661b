"""tools/density.py counts what is packed into a line, on planted code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "density.py"
# Module, the docstring's Expr and Constant, and Assign, Name and Constant: 6 nodes.
PLAIN = '"""A docstring\nof two lines."""\n\n# A comment.\nx = 1\n'
STEP = "    x = x + 1\n"  # Assign, Name, BinOp, Name, Add and Constant: 6 nodes
PACKED = "    return sum(a * b for a, b in zip(x, x) if a < b and b > a or not a)\n"


def density(folder, *options):
    command = [sys.executable, TOOL, folder, *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def package(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "plain.py").write_text(PLAIN)
    function = "def packed(x):\n" + 6 * STEP + PACKED
    (tmp_path / "room" / "dense.py").write_text(function)
    return tmp_path


def test_nodes_without_contexts_are_divided_by_lines_of_code(tmp_path):
    # Neither the docstring nor the comment is a line of code.
    (tmp_path / "plain.py").write_text(PLAIN)
    assert density(tmp_path).stdout.splitlines() == [
        "  6.00  .                1 lines of code",
        "  6.00  all              1 lines of code",
    ]


def test_rooms_and_the_densest_functions_are_listed(package):
    lines = density(package, "--functions", "1").stdout.splitlines()
    assert [line.split()[1] for line in lines[:3]] == [".", "room", "all"]
    assert lines[3].endswith(f"{package / 'room' / 'dense.py'}:1 packed")
    assert len(lines) == 4


def test_a_function_of_seven_lines_is_not_listed(tmp_path):
    (tmp_path / "short.py").write_text("def short(x):\n" + 6 * STEP)
    assert "short" not in density(tmp_path).stdout
    (tmp_path / "short.py").write_text("def short(x):\n" + 7 * STEP)
    assert "short" in density(tmp_path).stdout


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (("--max", "5"), "has .* AST nodes a line of code, more than 5;"),
        (("--max-function", "5"), "dense.py:1 packed has .* a line of code, more than 5;"),
    ],
)
def test_above_a_limit_it_fails_with_one_sentence(package, limit, message):
    assert density(package, limit[0], "50").returncode == 0
    result = density(package, *limit)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("in more steps.")
    assert re.search(message, line)
