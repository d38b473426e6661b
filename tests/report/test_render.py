import pytest

from latteclip.report import render


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.2, "0 s"), (61, "1 min 01 s"), (7620, "2 h 07 min")],  # noqa: RUF001
)
def test_durations_read_well(value, text):
    assert render.duration(value) == text


def test_differences_read_well():
    values = [1.25, -1.25, 0.04, -0.04, None]
    assert [render.signed(value) for value in values] == ["+1.2", "−1.2", "0.0", "0.0", "–"]  # noqa: RUF001
