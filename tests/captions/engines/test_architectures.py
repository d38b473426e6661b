"""The architectures that people use, with their own processors, through every engine."""

import dataclasses

import pytest
from support import tiny_lmms
from support.asked import PROMPT, answers, of_vllm, pictures
from support.commands import SETTINGS, paths_of
from support.vllm_server import SERVED_AS, serving

from latteclip.captions.processors import TokenCounter

NAMES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
SERVED = ("llava_next", "qwen3_vl")  # a start for each takes as long as all the rest


@pytest.fixture(scope="session")
def four(index):
    """Paths of four textures."""
    return paths_of(index)[:4]


@pytest.fixture(scope="session")
def asked(four, tmp_path_factory):
    """The settings with an architecture's model, and what transformers answers; once for each."""

    class Models(dict):
        def __missing__(self, name):
            folder = tmp_path_factory.mktemp(name)
            model = getattr(tiny_lmms, name)(folder)
            settings = dataclasses.replace(
                SETTINGS, model=model, max_new_tokens=12, max_model_len=1024
            )
            self[name] = settings, answers(settings, four)
            return self[name]

    return Models()


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_tells_pictures_apart_in_as_many_tokens_as_are_counted(name, asked, four):
    settings, expected = asked[name]
    assert len({text for text, *_ in expected}) > 2
    count = TokenCounter(settings, settings.max_new_tokens)
    shown = pictures(four)
    assert [read for *_, read in expected] == [count(PROMPT, each) for each in shown]


@pytest.fixture(scope="module")
def by_vllm(asked, four):
    """What vLLM answers, and what its engine is handed, by architecture."""
    models = [dataclasses.replace(asked[name][0], engine="vllm") for name in NAMES]
    return dict(zip(NAMES, of_vllm(models, four), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_vllm_answers_as_transformers_does(name, asked, by_vllm):
    assert by_vllm[name][0] == asked[name][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_is_made_once_is_what_vllm_makes_of_chat_messages(name, by_vllm):
    own, of_chat = by_vllm[name][1]
    assert own == of_chat


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_a_server_answers_as_transformers_does(name, asked, four, tmp_path, monkeypatch):
    settings, expected = asked[name]
    with serving(settings.model, tmp_path, max_model_len=1024) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        served = dataclasses.replace(settings, engine="openai", model=SERVED_AS)
        assert answers(served, four) == expected
