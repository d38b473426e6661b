"""Questions about images that nobody decodes."""

import numpy as np
import pyarrow as pa
import pytest

from latteclip.captions.pictures import Layout, blanks
from latteclip.captions.requests import Questions

SIZES = np.array([(300, 200), (60, 100), (4000, 3000), (10, 3000)])


def about(layout, n_images):
    names = pa.chunked_array([["a", "b", "c", "d"]])
    members = np.arange(4).reshape(-1, n_images)
    ids = [str(number) for number in range(len(members))]
    return Questions(ids, members, names, names, SIZES, None, lambda _: "?", layout)


@pytest.mark.parametrize(
    ("layout", "n_images"),
    [
        (Layout(), 1),
        (Layout(max_side=600), 1),
        (Layout(square=336), 1),
        (Layout("grid", canvas=128, gap=4, max_side=600), 4),
        (Layout("grid", canvas=128, gap=4, square=336), 4),
        (Layout("multi_image", max_side=600), 4),
        (Layout("multi_image", square=336), 4),
    ],
)
def test_no_request_shows_more_pixels_than_is_said(layout, n_images):
    questions = about(layout, n_images)
    shown = [blanks(questions.sizes_of(row), layout) for row in range(len(questions))]
    assert {len(pictures) for pictures in shown} == {questions.n_pictures}
    shown_pixels = max(sum(p.width * p.height for p in pictures) for pictures in shown)
    at_most = questions.n_pictures if n_images > 1 else 1  # all are as large as the largest
    assert shown_pixels <= questions.most_pixels <= at_most * shown_pixels
