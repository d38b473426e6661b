import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.tiny import write_class_scores

from latteclip.core.errors import UserError
from latteclip.labels.class_scores import read_class_scores
from latteclip.labels.score_unknown import unlikeliness

IDS = ["a.png", "b.png", "c.png"]


def write(path, options, values):
    return write_class_scores(path, IDS[: len(options)], options, values)


def read(path, image_ids):
    return read_class_scores(path, pa.chunked_array([image_ids], pa.string()))


def test_options_and_scores_are_those_of_the_images_asked_for(tmp_path):
    path = write(
        tmp_path / "s.parquet", [[3, 0], [], [1]], [[-1.5, -math.inf], [], [-0.25]]
    )
    options, scores = read(path, ["c.png", "b.png", "a.png"])
    gap = -math.inf
    assert scores.dtype == torch.float32
    assert options.tolist() == [[1, -1], [-1, -1], [3, 0]]
    assert scores.tolist() == [[-0.25, gap], [gap, gap], [-1.5, gap]]


def test_an_image_may_come_twice_or_not_at_all(tmp_path):
    path = write(tmp_path / "s.parquet", [[1], [], [0]], [[-1.0], [], [-2.0]])
    assert read(path, ["a.png", "a.png"])[1].tolist() == [[-1.0], [-1.0]]
    assert read(path, ["b.png"])[0].tolist() == [[-1]]
    assert read(path, [])[0].shape == (0, 1)
    with pytest.raises(UserError, match=r"s\.parquet.*z\.png"):
        read(path, ["a.png", "z.png"])


def test_an_image_is_unlike_its_options_as_they_are_improbable_together():
    with np.errstate(divide="ignore"):
        scores = np.log(np.float32([[0.5, 0.25], [0.01, 0.01], [1, 0], [0, 0]]))
    found = unlikeliness(scores)
    np.testing.assert_allclose(found[:3], -np.log([0.75, 0.02, 1]), atol=1e-6)
    assert np.isnan(found[3])  # not asked about


@pytest.mark.parametrize(
    "scores",
    [
        np.log([[0.5, 0.5], [0.9, 0.1]]),  # normalised
        np.log([[0.9, 0.9], [0.1, 0.1]]),  # no probabilities of different answers
        [[-math.inf, -math.inf]],
        np.zeros((0, 2)),
    ],
    ids=["sum to one", "sum to more", "none", "no image"],
)
def test_scores_that_cannot_tell_say_nothing(scores):
    assert np.isnan(unlikeliness(np.float32(scores))).all()
