"""The pool itself; what captioning does with it is in tests/captions/test_prepare.py."""

import multiprocessing

import pytest
from support.work import die, refuse, square, survive

from latteclip.core.errors import UserError
from latteclip.data.workers import Workers


def pool(work, n=2, chunk=3):
    return Workers(
        work, n, chunk=chunk, ahead=2, name=lambda task: f"{task}.jpg", threads_key="threads.eat"
    )


def test_results_come_in_the_order_of_the_tasks():
    with pool(square) as workers:
        assert list(workers.in_order(range(20))) == [square(number) for number in range(20)]
        assert list(workers.in_order([5])) == [25]  # and again
        assert list(workers.in_order([])) == []


def test_processes_can_start_before_there_is_a_task():
    before = set(multiprocessing.active_children())
    with pool(square) as workers:
        workers.start()
        assert len(set(multiprocessing.active_children()) - before) == 2
        assert list(workers.in_order([5])) == [25]


def test_only_a_few_tasks_are_taken_at_once():
    taken = []
    with pool(square) as workers:
        results = workers.in_order(taken.append(number) or number for number in range(1000))
        next(results)
        assert len(taken) <= (2 + 2) * 3
        results.close()


def test_a_process_that_dies_is_one_sentence():
    with (
        pytest.raises(UserError, match=r"died near \d\.jpg .* set threads\.eat lower"),
        pool(die) as workers,
    ):
        list(workers.in_order(range(3)))


def test_an_error_of_a_task_reaches_whoever_asked():
    with pytest.raises(UserError, match="Not 4"), pool(refuse) as workers:
        list(workers.in_order([4]))


def test_signals_that_end_a_job_do_not_end_its_workers():
    with pool(survive) as workers:
        assert list(workers.in_order(range(4))) == [0, 1, 2, 3]
