import json

import pytest
from support.commands import SETTINGS, python
from support.scored_textures import scores_of

from latteclip.captions.engines.base import Scores
from latteclip.captions.engines.transformers import TransformersEngine

# One start of the engine, for both kinds of scores and for what it refuses. As on a GPU, it is
# spawned in a process of its own.
SCORE = """
import dataclasses, json, sys
from support.commands import SETTINGS, python
from support.scored_textures import request, scores_of
from latteclip.captions.requests import Choices
from latteclip.captions.engines.vllm import VllmEngine

if __name__ == "__main__":
    files, output = json.loads(sys.argv[1]), sys.argv[2]
    settings = dataclasses.replace(SETTINGS, engine="vllm", batch_size=8)
    scorer = VllmEngine(settings, 1, 1, scoring=True)
    found = {}
    for kind in ("likelihood", "multiple_choice"):
        asked = [request(kind, number, path) for number, path in enumerate(files)]
        found[kind] = [dataclasses.astuple(scores) for scores in scores_of(scorer, asked)]
    long = "word " * 400
    letters = Choices("multiple_choice", ("A", "B"), (long, long))
    requests = [
        dataclasses.replace(asked[0], prompt=long, choices=choices)
        for choices in (letters, Choices("likelihood", ("a", "b")), None)
    ]
    answers = [*scorer.score(requests[:2]), *scorer.generate(requests[2:])]
    found["refused"] = [answer.error for _, answer in answers]
    with open(output, "w") as file:
        json.dump(found, file)
"""


@pytest.fixture(scope="module")
def by_vllm(textures, tmp_path_factory):
    """What vLLM says of the textures, by kind."""
    output = tmp_path_factory.mktemp("vllm") / "scores.json"
    python(SCORE, json.dumps(textures), output, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    return json.loads(output.read_text())


def best(scores):
    return max(range(len(scores)), key=scores.__getitem__)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["likelihood", "multiple_choice"])
def test_vllm_scores_as_transformers_does(by_vllm, requests, kind):
    expected = scores_of(TransformersEngine(SETTINGS, threads=1), requests[kind])
    found = [Scores(tuple(map(tuple, rows)), tuple(first)) for rows, first in by_vllm[kind]]
    same, differences = [], []
    for one, other in zip(expected, found, strict=True):
        assert one.first == other.first
        for row, values in zip(one.log_probabilities, other.log_probabilities, strict=True):
            same.append(best(row) == best(values))
            differences += [abs(a - b) for a, b in zip(row, values, strict=True)]
    assert sum(same) >= 0.95 * len(same)
    assert max(differences) < 1e-3  # 2e-5 was the largest


@pytest.mark.slow
def test_what_vllm_refuses_is_one_error_of_the_request(by_vllm):
    assert len(by_vllm["refused"]) == 3
    assert all("captioner.max_model_len" in error for error in by_vllm["refused"])
