import dataclasses
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from support.captioning import changed
from support.commands import PROMPT, SETTINGS, about, ask, scores_of
from support.tiny import DEMO_LLAVA
from support.tiny_lmms import qwen3_vl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from latteclip.captions.engines.transformers import Tokens, TransformersEngine, exclusive
from latteclip.captions.questions import Choices, Request
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.data.images import open_rgb


def paths_of(index):
    return tables.read(index)["path"].to_pylist()


TOLERANCE = 1e-3


def test_answers_to_prompts_of_several_lengths_are_those_of_each_alone(index):
    path = paths_of(index)[3]
    captioner = TransformersEngine(SETTINGS, threads=1)
    prompts = ("Describe.", PROMPT, "What?")
    requests = [about(path, prompt, key) for key, prompt in enumerate(prompts)]
    alone = [ask(captioner, request)[0] for request in requests]
    assert ask(captioner, *requests) == alone


def test_batches_are_halved_until_the_memory_holds_them(index, monkeypatch):
    requests = [about(paths_of(index)[key % 3], PROMPT, key) for key in range(18)]
    captioner = TransformersEngine(changed(SETTINGS, batch_size=16), threads=1)
    alone = [ask(captioner, request)[0] for request in requests[:3]]
    generate, tried = captioner._model.generate, []

    def with_room(n):
        def of_batch(input_ids, **inputs):
            tried.append(len(input_ids))
            if len(input_ids) > n:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB."
                )
            return generate(input_ids=input_ids, **inputs)

        monkeypatch.setattr(captioner._model, "generate", of_batch)

    with_room(4)
    assert ask(captioner, *requests) == alone * 6
    assert tried == [16, 8, 4, 4, 4, 4, 2]
    with_room(0)
    with pytest.raises(UserError, match=r"captioner\.dtype"):
        ask(captioner, requests[0])


@pytest.mark.parametrize("suffixes", [(), (".json", ".jinja")])
def test_a_folder_without_a_model_is_one_sentence(tmp_path, suffixes):
    """Without a file, and without weights."""
    for file in DEMO_LLAVA.iterdir():
        if file.suffix in suffixes:
            shutil.copy(file, tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        TransformersEngine(changed(SETTINGS, model=str(tmp_path)), threads=1)


# --- scores --------------------------------------------------------------------------------------


class Plain:
    """One text at a time through the whole model: no cache and no batch."""

    def __init__(self, scorer):
        self.processor, self.model = scorer._processor, scorer._model

    def prompt(self, request):
        content = [{"type": "image"}, {"type": "text", "text": request.prompt}]
        turns = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(turns, add_generation_prompt=True)

    def rows(self, request, text):
        """Token ids [L], and log-probabilities [L, V] of the token after each."""
        inputs = self.processor(images=[request.pictures], text=[text], return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(**inputs, use_cache=False).logits[0]
        return inputs["input_ids"][0].tolist(), logits.float().log_softmax(-1)

    def likelihoods(self, request):
        """Sums over the tokens from where the choices' texts part from the prompt's."""
        prompt = self.prompt(request)
        alone, _ = self.rows(request, prompt)
        found = [self.rows(request, prompt + text) for text in request.choices.texts]
        same = [
            all(ids[i : i + 1] == [own] for ids, _ in found) for i, own in enumerate(alone)
        ]
        start = same.index(False) if False in same else len(alone)
        return [
            sum(rows[i - 1, ids[i]].item() for i in range(start, len(ids)))
            for ids, rows in found
        ]


def test_likelihoods_are_those_of_a_plain_forward_pass(requests):
    asked = requests["likelihood"]
    scorer = TransformersEngine(SETTINGS, threads=1)
    plain = Plain(scorer)
    for request, scores in zip(asked, scores_of(scorer, asked), strict=True):
        expected = plain.likelihoods(request)
        assert scores[0] == pytest.approx(expected, abs=TOLERANCE)


def test_another_architecture_counts_its_positions_right(textures, tmp_path):
    """A picture of Qwen3-VL takes fewer positions than tokens."""
    settings = changed(SETTINGS, model=qwen3_vl(tmp_path / "qwen"))
    scorer = TransformersEngine(settings, threads=1)
    plain = Plain(scorer)
    asked = [
        Request(n, [open_rgb(textures[n])], prompt, Choices((" dot.", " dotted.")))
        for n, prompt in enumerate(("Describe.", "What?", "What is it, in one word?"))
    ]
    for request, scores in zip(asked, scores_of(scorer, asked), strict=True):
        bare = dataclasses.replace(request, choices=Choices(("dot.", "dotted.")))
        expected = plain.likelihoods(bare)  # its template ends in a line break
        assert scores[0] == pytest.approx(expected, abs=TOLERANCE)


# --- tokens ---------------------------------------------------------------------------------------


def tokens(merges):
    """Byte-level tokens with some merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw)
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
