import math
import re

import numpy as np
import pytest

from latteclip.report import charts

N = 41


def test_reliability_equals_the_loop():
    rng = np.random.default_rng(1)
    confidence = np.append(rng.random(N - 2) * 0.79, [0.0, 1.0])
    right = rng.integers(0, 2, N)
    shares, accuracy = charts.reliability(confidence, right)
    for b in range(10):
        own = [i for i in range(N) if min(int(confidence[i] * 10), 9) == b]
        assert shares[b] == pytest.approx(len(own) / N)
        if own:
            assert accuracy[b] == pytest.approx(sum(right[i] for i in own) / len(own))
        else:
            assert math.isnan(accuracy[b])


def test_a_chart_takes_its_colours_from_the_page_and_is_the_same_each_time():
    x = np.arange(4.0)
    lines = [charts.Line("a", x, [x, 2 * x], 0), charts.Line("b", x, [3 - x], 3)]
    svg, again = (
        charts.line_chart("Loss", lines, x_label="epoch", note="")["svg"] for _ in range(2)
    )
    assert svg == again
    assert "var(--series-1)" in svg and "var(--series-4)" in svg
    assert not re.search(
        r"#[0-9a-f]{6}\b|<style", svg
    )  # a style would be one of the whole page
    assert "a from 0 to 4.5; b from 3 to 0" in svg
