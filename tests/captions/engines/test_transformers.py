import re
import shutil

import pytest
import torch
from support.commands import PROMPT, SETTINGS, about, ask, paths_of
from support.sections import changed
from support.tiny import DEMO_LLAVA

from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.core.errors import UserError


def test_transformers_ends_its_sentences_and_counts_tokens(answers):
    assert set(answers["finish_reason"]) == {"stop"}
    assert all(1 < n <= 40 for n in answers["n_tokens"])
    assert len(set(answers["caption"])) > 5
    assert not any(
        "<" in caption or "ASSISTANT" in caption for caption in answers["caption"]
    )


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
