"""Prompts and choices as tokens of small tokenizers that are made for it."""

import itertools
import math
from types import SimpleNamespace

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from latteclip.captions.engines.processors import Tokens, exclusive
from latteclip.core.errors import UserError


def tokens(merges=(), *, begin=False):
    """Byte-level tokens with some merges, and perhaps a mark at the beginning."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<s>"])}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    if begin:
        pieces = {"single": "<s> $A", "special_tokens": [("<s>", vocabulary["<s>"])]}
        raw.post_processor = processors.TemplateProcessing(**pieces)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")
    return Tokens(SimpleNamespace(tokenizer=tokenizer), "some/model")


@pytest.mark.parametrize(
    ("merges", "prompt", "choices", "shared", "tails"),
    [
        ([], "what:", [" dot", " dotted"], "what:", [" dot", " dotted"]),
        ([(":", "d")], "what:", ["dot", "woven"], "what", [":dot", ":woven"]),  # across the border
        ([], "what: ", [" dot", "  x"], "what: ", ["dot", " x"]),  # one space is enough
        ([], "what\n", [" dot"], "what\n", ["dot"]),
    ],
)
def test_choices_begin_where_they_part_from_the_prompt(merges, prompt, choices, shared, tails):
    found = tokens(merges)
    split = found.split(prompt, choices)
    decode = found._tokenizer.decode
    assert decode(split.prompt[: split.start]) == shared
    assert [decode(tail) for tail in split.tails] == tails


def test_a_name_that_is_split_otherwise_after_a_space_is_split_as_it_stands():
    found = tokens([("Ġ", "d"), ("d", "o")])  # "do|t" by itself, " d|o|t" after a space
    assert [found.text(token) for token in found.ids("dot")] == ["do", "t"]
    [tail] = found.split("what:", [" dot"]).tails
    assert [found.text(token) for token in tail] == [" d", "o", "t"]


def test_special_tokens_are_added_once():
    found = tokens(begin=True)
    assert found.ids("ab")[0] == found.ids("<s>ab")[0] == 256
    assert found.ids("ab") == found.ids("<s>ab")
    split = found.split("<s>ab", ["c"])
    assert (split.start, len(split.tails[0])) == (3, 1)


def test_a_choice_without_a_token_is_refused():
    with pytest.raises(UserError, match="some/model"):
        tokens().split("what:", [" dot", ""])


def test_a_letter_is_the_token_alone_and_after_a_space():
    found = tokens([("Ġ", "A"), ("A", "."), ("Ġ", "B")])
    a, b = found.ids_of_letters(("A", "B"))
    assert sorted(map(found.text, a)) == [" A", "A"]
    assert sorted(map(found.text, b)) == [" B", "B"]


def test_a_letter_without_a_token_is_refused():
    raw = Tokenizer(models.WordLevel({"A": 0, "cat": 1, "?": 2}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?")
    found = Tokens(SimpleNamespace(tokenizer=tokenizer), "some/model")
    with pytest.raises(UserError, match=r"scores\.kind"):
        found.ids_of_letters(("A", "B"))


# --- choices that begin others -------------------------------------------------------------------


def test_choices_that_begin_no_other_keep_their_values():
    values = [-1.0000001, -2.5, -math.inf]
    assert exclusive(values, [[1, 2], [1, 3], [2]]) == values


def test_what_goes_on_is_taken_off_once():
    """All texts over two letters up to length three, and how probable each is as a beginning."""
    end, go = 0.4, 0.3  # a text ends, or goes on with either letter
    tails = [[1], [1, 2], [1, 2, 1], [2], [1, 1]]
    begins = {tuple(tail): go ** len(tail) for tail in tails}
    values = [math.log(begins[tuple(tail)]) for tail in tails]
    found = exclusive(values, tails)
    every = [
        text for n in range(1, 12) for text in itertools.product((1, 2), repeat=n)
    ]  # a text of n letters and its end: go ** n * end

    def probability(tail):
        """Of texts that begin with a tail and with none that is longer."""
        longer = [other for other in tails if len(other) > len(tail)]
        return sum(
            go ** len(text) * end
            for text in every
            if list(text[: len(tail)]) == tail
            and not any(list(text[: len(other)]) == other for other in longer)
        )

    for tail, value in zip(tails, found, strict=True):
        assert math.exp(value) == pytest.approx(probability(tail), abs=0.005)


def test_a_beginning_that_always_goes_on_has_nothing_of_its_own():
    assert exclusive([-1.0, -1.0], [[1], [1, 2]]) == [-math.inf, -1.0]
    assert exclusive([-1.0, -0.999], [[1], [1, 2]]) == [-math.inf, -0.999]
    assert exclusive([-math.inf, -math.inf], [[1], [1, 2]]) == [-math.inf] * 2
    assert exclusive([-1.0, -math.inf], [[1], [1, 2]]) == [-1.0, -math.inf]
