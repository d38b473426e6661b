"""The engine for servers against a real one."""

import dataclasses

import pytest
from support.commands import PROMPT, SETTINGS, WRITTEN, paths_of, read
from support.tiny import DEMO_LLAVA
from support.vllm_server import SERVED_AS, serving

from latteclip.captions import caption
from latteclip.captions.engines.base import Scores
from latteclip.captions.engines.openai import OpenaiEngine
from latteclip.captions.engines.transformers import TransformersEngine
from latteclip.captions.pictures import data_url
from latteclip.captions.requests import Choices, Request
from latteclip.core import tables
from latteclip.data.images import open_rgb


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory):
    """`vllm serve` of the demo's LLaVA; its address."""
    with serving(DEMO_LLAVA, tmp_path_factory.mktemp("server"), max_model_len=256) as url:
        yield url


@pytest.mark.slow
def test_a_vllm_server_writes_what_the_offline_engine_writes(
    index, answers, vllm_server, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", vllm_server)
    settings = dataclasses.replace(SETTINGS, engine="openai", model=SERVED_AS, concurrency=8)
    output = tmp_path / "captions.parquet"
    caption.caption_images(index, None, PROMPT, settings, str(output), threads=1)
    written = read(output)
    for name in set(WRITTEN) - {"digest"}:  # the server's name for the model is part of that
        assert written[name] == answers[name]
    assert tables.read(output, tables.CAPTIONS)[1]["engine"] == "openai server of vllm"


@pytest.mark.slow
def test_a_vllm_server_tells_the_log_probabilities_of_its_first_token(
    index, vllm_server, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", vllm_server)
    path = paths_of(index)[0]
    prompts = ("Describe the texture.", PROMPT)
    # Words in place of letters: those with which the demo's LLaVA begins.
    choices = Choices("multiple_choice", ("a", "mostly"), prompts)
    server = OpenaiEngine(dataclasses.replace(SETTINGS, engine="openai", model=SERVED_AS))
    [(_, answer)] = server.answer([Request(0, [data_url(open_rgb(path))], prompts[0], choices)])
    local = TransformersEngine(SETTINGS, threads=1)
    [(_, expected)] = local.answer([Request(0, [open_rgb(path)], prompts[0], choices)])
    found, wanted = Scores.parse(answer.text), Scores.parse(expected.text)
    assert found.first == wanted.first
    for row, other in zip(found.log_probabilities, wanted.log_probabilities, strict=True):
        assert row[0] == pytest.approx(other[0], abs=1e-2)  # 1.5e-3 apart, at -7.3
