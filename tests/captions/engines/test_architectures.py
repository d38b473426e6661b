"""The architectures that people use, with their own processors, through every engine."""

import dataclasses
import functools

import pytest
import transformers
from support import tiny_lmms
from support.asked import PROMPT, answers, of_vllm, pictures
from support.commands import SETTINGS, paths_of

from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.captions.requests import SPECIAL_TOKENS, Choices, Request, messages, special_tokens

NAMES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
BEGUN = ("llava", "llava_next")  # by "<s>": of the template, of the tokenizer


@pytest.fixture(scope="session")
def four(index):
    """Paths of four textures."""
    return paths_of(index)[:4]


@pytest.fixture(scope="session")
def asked(four, tmp_path_factory):
    """The settings with an architecture's model, and what transformers answers; once for each."""

    @functools.cache
    def asked(name):
        model = getattr(tiny_lmms, name)(tmp_path_factory.mktemp(name))
        settings = dataclasses.replace(SETTINGS, model=model, max_new_tokens=12, max_model_len=1024)
        return settings, answers(settings, four)

    return asked


@pytest.fixture(scope="session")
def documented(asked, four):
    """The token ids that the model's own processor makes of each request; once for each."""

    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}

    @functools.cache
    def documented(name):
        processor = transformers.AutoProcessor.from_pretrained(asked(name)[0].model)
        turns = (
            messages([{"type": "image", "image": image} for image in each], PROMPT)
            for each in pictures(four)
        )
        return [processor.apply_chat_template(turn, **options)["input_ids"][0] for turn in turns]

    return documented


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_tells_pictures_apart_and_counts_its_tokens(name, asked, documented):
    _, expected = asked(name)
    assert len({text for text, *_ in expected}) > 2
    assert [read for *_, read in expected] == [len(ids) for ids in documented(name)]


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_what_the_model_s_own_processor_makes(name, asked, documented, four):
    scorer = TransformersEngine(asked(name)[0])  # which reads prompts as the captioner does
    for shown, expected in zip(pictures(four), documented(name), strict=True):
        request = Request(0, shown, PROMPT, Choices("likelihood", ("a", "b")))
        [prompt] = scorer._tokens.prompts(request)
        assert scorer._inputs([request], [prompt])["input_ids"].tolist() == [expected]
        alone = scorer._tokens.ids(prompt)  # its pictures as marks
        assert (alone[:3], alone[-3:]) == (expected[:3], expected[-3:])


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_begins_with_the_tokenizer_s_first_token_once(name, asked, documented):
    """Whether the template or the tokenizer puts it there; the digest knows of its rule."""
    model = asked(name)[0].model
    first = transformers.AutoTokenizer.from_pretrained(model).bos_token_id
    has = name in BEGUN
    assert [ids.count(first) for ids in documented(name)] == [has] * len(documented(name))
    assert all((ids[0] == first) == has for ids in documented(name))
    assert special_tokens(model, None) == (SPECIAL_TOKENS if has else None)


@pytest.fixture(scope="module")
def by_vllm(asked, four):
    """What vLLM answers, and the token ids that it reads, by architecture."""
    models = [dataclasses.replace(asked(name)[0], engine="vllm") for name in NAMES]
    return dict(zip(NAMES, of_vllm(models, four), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_vllm_reads_and_answers_as_transformers_does(name, asked, by_vllm, documented):
    answers, ids = by_vllm[name]
    assert answers == asked(name)[1]
    assert ids == documented(name)
