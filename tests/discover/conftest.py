"""A proposal of three classes."""

import pytest
from support.made_results import N_UNNAMED, discover, write_unnamed


@pytest.fixture
def results(tmp_path):
    """A proposal of three classes, of which one has a hostile name."""
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    called = ["cup", "dog", "ca\u202er </script>"]
    write_unnamed(folder, [called[number % 3] for number in range(N_UNNAMED)])
    discover(folder)
    return folder
