import dataclasses
import re
import shutil

import pytest
from support.commands import PROMPT, SETTINGS, about, ask, paths_of
from support.tiny import DEMO_LLAVA

from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.core.errors import UserError


def test_transformers_ends_its_sentences_and_counts_tokens(answers):
    assert set(answers["finish_reason"]) == {"stop"}
    assert all(1 < n <= 40 for n in answers["n_tokens"])
    assert len(set(answers["caption"])) > 5
    assert not any("<" in caption or "ASSISTANT" in caption for caption in answers["caption"])


def test_answers_to_prompts_of_several_lengths_are_those_of_each_alone(index):
    path = paths_of(index)[3]
    captioner = TransformersEngine(SETTINGS, threads=1)
    prompts = ("Describe.", PROMPT, "What?")
    requests = [about(path, prompt, key) for key, prompt in enumerate(prompts)]
    alone = [ask(captioner, request)[0] for request in requests]
    assert ask(captioner, *requests) == alone


def test_an_answer_is_cut_at_max_new_tokens(index):
    short = dataclasses.replace(SETTINGS, max_new_tokens=3)
    [answer] = ask(TransformersEngine(short, threads=1), about(paths_of(index)[0]))
    assert (answer.finish_reason, answer.n_tokens) == ("length", 3)


@pytest.mark.parametrize("suffixes", [(), (".json", ".jinja")])
def test_a_folder_without_a_model_is_one_sentence(tmp_path, suffixes):
    """Without a file, and without weights."""
    for file in DEMO_LLAVA.iterdir():
        if file.suffix in suffixes:
            shutil.copy(file, tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        TransformersEngine(dataclasses.replace(SETTINGS, model=str(tmp_path)))
