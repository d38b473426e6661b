"""A proposal of three classes, and pages in a real browser."""

import re

import pytest
from support.unnamed import N, run, write_inputs
from support.visits import visiting

# Messages of the browser itself: a name is in use, another page has saved, or a connection ended.
NETWORK = r"CONNECTION_\w+|EMPTY_RESPONSE|CONTENT_LENGTH_MISMATCH|ABORTED"
EXPECTED = re.compile(rf"status of 400|412|net::ERR_({NETWORK})")


@pytest.fixture
def visit(browser):
    """Opens an address. Afterwards the page must have complained of nothing."""
    with visiting(browser, EXPECTED) as open_page:
        yield open_page


@pytest.fixture
def results(tmp_path):
    """A proposal of three classes, of which one has a hostile name."""
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    called = ["cup", "dog", "ca\u202er </script>"]
    write_inputs(folder, [called[number % 3] for number in range(N)])
    run(folder)
    return folder
