import numpy as np
import pytest
from PIL import Image
from support.captioning import LETTERS, N, mean_colour, options_of, reply, value

from latteclip.captions import score_classes
from latteclip.captions.engine import scored as answer_with
from latteclip.core.errors import UserError


def best(cosines, k):
    """The k best classes of each image in plain loops."""
    return [sorted(range(len(row)), key=lambda c: (-row[c], c))[:k] for row in cosines]


def test_each_training_image_is_asked_about_its_best_classes(scored, scorer):
    columns = scored.score()
    assert columns["image_id"] == scored.names
    assert columns["options"] == best(scored.cosines, 5)
    assert columns["error"] == [None] * N
    assert len(scorer.requests) == N
    for row, file in enumerate(scored.files):
        [request] = [request for request in scorer.requests if request.key == row]
        texts = tuple(f" class {number}." for number in columns["options"][row])
        assert (request.prompt, request.choices.texts) == ("What?", texts)
        seen = mean_colour(Image.open(file))
        expected = [value(seen, "What?", text) for text in texts]
        assert columns["log_probabilities"][row] == pytest.approx(expected)


def test_letters_are_those_of_the_options_in_every_order(scored, scorer):
    columns = scored.score(LETTERS)
    assert len(scorer.requests) == N
    for row, options in enumerate(columns["options"]):
        names = [scored.classnames[c] for c in options]
        [request] = [request for request in scorer.requests if request.key == row]
        assert request.choices.texts == tuple("ABCDEF")
        assert len(request.choices.prompts) == 2
        assert request.prompt == request.choices.prompts[0]
        for prompt in request.choices.prompts:
            *shown, last = options_of(prompt)
            assert sorted(shown) == sorted(names)
            assert last == "none of these"
        seen = mean_colour(Image.open(scored.files[row]))
        values = np.array([value(seen, name) for name in [*names, "none of these"]])
        expected = values - np.log(np.exp(values).sum())  # the same in every order
        assert columns["log_probabilities"][row] == pytest.approx(expected[:-1], abs=1e-5)


@pytest.mark.parametrize("first", ["I", ""])
def test_an_answer_outside_the_letters_leaves_an_image_without_scores(
    scored, scorer, first
):
    """It is not cached, so that the next run asks again."""

    def outside(request):
        if request.key != 2:
            return reply(request)
        return answer_with(request.choices, [[-3.0] * 6] * 2, ["A", first])

    scorer.reply = outside
    with pytest.raises(UserError, match="1 of 7"):
        scored.score(LETTERS)
    columns = scored.score(LETTERS, max_failed=0.2)
    assert columns["log_probabilities"][2] == []
    assert columns["error"][2]
    assert [bool(options) for options in columns["options"]] == [
        row != 2 for row in range(N)
    ]
    scorer.reply = reply
    scorer.forget()
    assert scored.score(LETTERS)["error"] == [None] * N
    assert len(scorer.requests) == 1


def test_no_class_is_called_like_the_option_for_none(scored, scorer, monkeypatch):
    monkeypatch.setattr(score_classes, "NONE", "class 3")
    with pytest.raises(UserError, match="class 3"):
        scored.score(LETTERS)
    assert scorer.starts == 0


def test_scores_do_not_repeat_the_pseudo_label(scored, scorer):
    with pytest.raises(UserError, match=r"prompts\.image"):
        scored.score(prompt="Is it {}?")
    assert scorer.starts == 0
