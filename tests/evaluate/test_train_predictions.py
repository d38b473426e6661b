import numpy as np

from latteclip.evaluate import train_predictions

N, C = 41, 7


def test_examples_go_from_sure_to_unsure_over_different_classes():
    rng = np.random.default_rng(2)
    confidence, labels = rng.random(N), rng.integers(0, C, N)
    chosen = train_predictions.choose_examples(confidence, labels, 5)
    assert len(set(chosen)) == 5
    assert sorted(confidence[chosen], reverse=True) == confidence[chosen].tolist()
    assert len(set(labels[chosen])) == 5
    assert (
        train_predictions.choose_examples(confidence[:3], labels[:3], 12)
        == np.argsort(-confidence[:3]).tolist()
    )
