"""The architectures that people use, with their own processors, through every engine."""

import pytest
import transformers
from support import tiny_lmms
from support.asked import PROMPT, answers, of_vllm, pictures
from support.commands import SETTINGS, paths_of
from support.sections import changed

from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.captions.requests import (
    SPECIAL_TOKENS,
    Choices,
    Request,
    messages,
    special_tokens,
)

NAMES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
BEGUN = ("llava", "llava_next")  # by "<s>": of the template, of the tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The settings with a model of each architecture."""
    changes = {"max_new_tokens": 12, "max_model_len": 1024}
    paths = {
        name: getattr(tiny_lmms, name)(tmp_path_factory.mktemp(name)) for name in NAMES
    }
    return {name: changed(SETTINGS, model=paths[name], **changes) for name in NAMES}


@pytest.fixture(scope="module")
def four(index):
    """Paths of four textures."""
    return paths_of(index)[:4]


@pytest.fixture(scope="module", params=NAMES)
def asked(request, models, four):
    """An architecture, what transformers answers, and the ids that its own processor makes."""
    settings = models[request.param]
    processor = transformers.AutoProcessor.from_pretrained(settings.model)
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    ids = []
    for each in pictures(four):
        turn = messages([{"type": "image", "image": image} for image in each], PROMPT)
        ids += processor.apply_chat_template(turn, **options)["input_ids"]
    return request.param, answers(settings, four), ids


def test_transformers_reads_what_the_model_s_own_processor_makes(asked, models, four):
    name, found, documented = asked
    assert len({text for text, *_ in found}) > 2  # it tells pictures apart
    assert [read for *_, read in found] == list(map(len, documented))
    engine = TransformersEngine(models[name], threads=1)
    for shown, ids in zip(pictures(four), documented, strict=True):
        request = Request(0, shown, PROMPT, Choices("likelihood", ("a", "b")))
        [prompt] = engine._tokens.prompts(request)
        assert engine._inputs([request], [prompt])["input_ids"].tolist() == [ids]
        alone = engine._tokens.ids(prompt)  # its pictures as flags
        assert (alone[:3], alone[-3:]) == (ids[:3], ids[-3:])


def test_a_prompt_begins_with_the_tokenizer_s_first_token_once(asked, models):
    """Whether the template or the tokenizer puts it there; the digest knows of its rule."""
    name, _, documented = asked
    first = transformers.AutoTokenizer.from_pretrained(models[name].model).bos_token_id
    has = name in BEGUN
    assert all((ids.count(first), ids[0] == first) == (has, has) for ids in documented)
    assert special_tokens(models[name].model, None) == (SPECIAL_TOKENS if has else None)


@pytest.fixture(scope="module")
def by_vllm(models, four):
    """What vLLM answers, and the token ids that it reads, by architecture."""
    settings = [changed(each, engine="vllm") for each in models.values()]
    return dict(zip(models, of_vllm(settings, four), strict=True))


@pytest.mark.slow
def test_vllm_reads_and_answers_as_transformers_does(asked, by_vllm):
    name, *found = asked
    assert by_vllm[name] == found
