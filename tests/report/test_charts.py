import re

import numpy as np

from latteclip.report import comparison


def test_a_chart_takes_its_colours_from_the_page_and_is_the_same_each_time():
    x = np.arange(4.0)
    lines = [comparison.Line("a", x, [x, 2 * x], 0), comparison.Line("b", x, [3 - x], 3)]
    drawing, again = (comparison.line_chart("Loss", lines, x_label="epoch") for _ in range(2))
    assert drawing.svg == again.svg
    assert "var(--series-1)" in drawing.svg
    assert "var(--series-4)" in drawing.svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawing.svg)) == set()
    assert "a from 0 to 4.5; b from 3 to 0" in drawing.svg
    assert "<style" not in drawing.svg  # it would be one of the whole page
