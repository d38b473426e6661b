"""The pool itself; what captioning does with it is in tests/captions/test_runner.py."""

import os
import re
import subprocess
import sys

from support.processes import square
from support.tiny import ROOT

from latteclip.data.images import AHEAD, CHUNK, Workers


def test_results_come_in_the_order_of_the_tasks():
    with Workers(square, 2) as workers:
        assert list(workers.in_order(range(20))) == [square(number) for number in range(20)]
        assert list(workers.in_order([5])) == [25]  # and again
        assert list(workers.in_order([])) == []
        early = workers.in_order(range(20))
        assert next(early) == 0
        early.close()
        assert list(workers.in_order([100, 101])) == [100**2, 101**2]


def test_only_a_few_tasks_are_taken_at_once():
    taken = []
    with Workers(square, 2) as workers:
        results = workers.in_order(taken.append(number) or number for number in range(1000))
        next(results)
        assert len(taken) <= (2 + AHEAD) * CHUNK


DIE = """
from support.processes import die_among_many_bytes
from latteclip.data import images
images.CHUNK = 1
if __name__ == "__main__":
    with images.Workers(die_among_many_bytes, 2, "{}.jpg".format) as workers:
        list(workers.in_order(range(6)))
"""


def test_where_a_process_dies_the_others_end_too_though_nobody_reads_what_they_give(
    tmp_path,
):
    (tmp_path / "run.py").write_text(DIE)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.search(r"UserError: .* died near \d\.jpg .*compute\.threads", done.stderr)
