"""Names in the answers of a captioner."""

import numpy as np
import pytest

from latteclip.discover.names import phrases, predictability, read_names, weighted


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Leopard.", ["leopard"]),
        ("The image shows a leopard in tall grass.", ["leopard"]),
        ("man with red hair", ["man"]),
        ("Watch, wristwatch, timepiece.", ["watch", "wristwatch", "timepiece"]),
        ("sea-horse\nwater", ["sea horse", "water"]),
        ("... !!! \x00\x1b[31m", ["31m"]),
        ("<b>dog</b>", ["dog"]),
        ("x" * 10_000, ["x" * 40]),
    ],
)
def test_an_answer_gives_the_names_in_it(answer, found):
    assert phrases(answer) == found


def test_words_that_features_do_not_predict_carry_no_weight():
    rng = np.random.default_rng(0)
    truth = np.arange(200) % 4
    centres = rng.normal(size=(4, 16))
    features = (centres[truth] + 0.1 * rng.normal(size=(200, 16))).astype(np.float32)
    colours = rng.choice(["red", "blue"], 200)
    nouns = ["cup", "dog", "car", "fish"]
    names = read_names([f"{colours[i]} {nouns[truth[i]]}" for i in range(200)])
    weights = dict(zip(names.terms, predictability(features, names), strict=True))
    assert min(weights[noun] for noun in nouns) > 0.95
    assert max(weights["red"], weights["blue"]) < 0.2
    _, reliability, best = weighted(names, np.array([*weights.values()], np.float32))
    assert {names.terms[term] for term in best} == set(nouns)
    assert reliability.min() > 0.95
