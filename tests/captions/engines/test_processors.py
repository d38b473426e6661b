"""Prompts and choices as tokens of small tokenizers that are made for it."""

import math
from types import SimpleNamespace

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from latteclip.captions.engines.transformers import Tokens, exclusive


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
    return Tokens(SimpleNamespace(tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("merges", "prompt", "choices", "shared", "tails"),
    [
        ([], "what:", [" dot", " dotted"], "what:", [" dot", " dotted"]),
        (
            [(":", "d")],
            "what:",
            ["dot", "woven"],
            "what",
            [":dot", ":woven"],
        ),  # across the border
        ([], "what: ", [" dot", "  x"], "what: ", ["dot", " x"]),  # one space is enough
        ([], "what\n", [" dot"], "what\n", ["dot"]),
    ],
)
def test_choices_begin_where_they_part_from_the_prompt(
    merges, prompt, choices, shared, tails
):
    found = tokens(merges)
    split = found.split(prompt, choices)
    decode = found._tokenizer.decode
    assert decode(split.prompt[: split.start]) == shared
    assert [decode(tail) for tail in split.tails] == tails


# --- choices that begin others -------------------------------------------------------------------


def test_what_goes_on_is_taken_off_once():
    """A choice and all that go on where it ends have the probability of its beginning."""
    tails = [[1], [1, 2], [1, 2, 1], [2], [1, 1]]
    values = [len(tail) * math.log(0.3) for tail in tails]
    found = exclusive(values, tails)
    for tail, value in zip(tails, values, strict=True):
        parts = [
            v for other, v in zip(tails, found, strict=True) if other[: len(tail)] == tail
        ]
        assert sum(map(math.exp, parts)) == pytest.approx(math.exp(value))
