"""A proposal of three classes."""

import pytest
from support.unnamed import N, run, write_inputs


@pytest.fixture
def results(tmp_path):
    """A proposal of three classes, of which one has a hostile name."""
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    called = ["cup", "dog", "ca\u202er </script>"]
    write_inputs(folder, [called[number % 3] for number in range(N)])
    run(folder)
    return folder
