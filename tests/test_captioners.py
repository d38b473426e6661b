import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import DEMO_LLAVA, write_index

from latteclip import captioners, captions, tables
from latteclip.captioners import CaptionerSettings, Request, TransformersCaptioner
from latteclip.demo import textures
from latteclip.errors import UserError
from latteclip.images import open_rgb

N = 30
PROMPT = "Describe the texture in the photo concisely, less than 20 words."
SETTINGS = CaptionerSettings(
    engine="transformers",
    model=str(DEMO_LLAVA),
    revision=None,
    dtype="float32",
    max_new_tokens=40,
    max_model_len=256,
    gpu_memory_utilization=0.5,
    batch_size=16,
)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of N demo textures."""
    folder = tmp_path_factory.mktemp("captioners")
    textures.write_dataset(folder / "data", train=N, test=1, gap=0.5, seed=9)
    files = sorted(map(str, (folder / "data").rglob("*.png")))[:N]
    return write_index(folder / "images.parquet", files, ["train"] * N, [None] * N, ["a", "b"])


@pytest.fixture(scope="module")
def answers(index, tmp_path_factory):
    """What transformers writes about them: the CAPTIONS columns."""
    output = tmp_path_factory.mktemp("answers") / "captions.parquet"
    captions.caption_images(index, None, PROMPT, SETTINGS, str(output), threads=1)
    return tables.read(output, tables.CAPTIONS)[0].to_pydict()


def test_transformers_ends_its_sentences_and_counts_tokens(answers):
    assert set(answers["finish_reason"]) == {"stop"}
    assert all(1 < n <= 40 for n in answers["n_tokens"])
    assert len(set(answers["caption"])) > 5
    assert not any("<" in caption or "ASSISTANT" in caption for caption in answers["caption"])


def test_an_answer_does_not_depend_on_its_batch(index, answers):
    paths = tables.read(index, tables.IMAGES)[0]["path"].to_pylist()
    captioner = TransformersCaptioner(SETTINGS, threads=1)
    for i in (0, 17):
        answer = captioner.answer([Request(open_rgb(paths[i]), PROMPT)])[0]
        assert " ".join(answer.text.split()) == answers["caption"][i]
        assert answer.n_tokens == answers["n_tokens"][i]


def test_answers_to_prompts_of_several_lengths_are_those_of_each_alone(index):
    path = tables.read(index, tables.IMAGES)[0]["path"][3].as_py()
    captioner = TransformersCaptioner(SETTINGS, threads=1)
    requests = [Request(open_rgb(path), prompt) for prompt in ("Describe.", PROMPT, "What?")]
    alone = [captioner.answer([request])[0] for request in requests]
    assert captioner.answer(requests) == alone


def test_an_answer_is_cut_at_max_new_tokens(index):
    path = tables.read(index, tables.IMAGES)[0]["path"][0].as_py()
    short = dataclasses.replace(SETTINGS, max_new_tokens=3)
    answer = TransformersCaptioner(short, threads=1).answer([Request(open_rgb(path), PROMPT)])[0]
    assert (answer.finish_reason, answer.n_tokens) == ("length", 3)


@pytest.mark.slow
def test_vllm_writes_what_transformers_writes(index, answers, tmp_path):
    output = tmp_path / "captions.parquet"
    settings = dataclasses.replace(SETTINGS, engine="vllm")
    run = subprocess.run(
        [
            *(Path(sys.executable).parent / "latteclip", "caption-images"),
            *("--images", index, "--prompt", PROMPT, "--threads", "2"),
            *("--captioner", json.dumps(dataclasses.asdict(settings))),
            *("--output", str(output), "--log", str(tmp_path / "log")),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    table, metadata = tables.read(output, tables.CAPTIONS)
    assert metadata["engine"].startswith("vllm ")
    assert f"Wrote {len(table)} captions" in (tmp_path / "log").read_text()
    written = table.to_pydict()
    assert written["caption"] == answers["caption"]
    assert written["finish_reason"] == answers["finish_reason"]
    assert written["n_tokens"] == answers["n_tokens"]


def test_an_unknown_engine_is_named():
    with pytest.raises(UserError, match="'vlm' is none of vllm, transformers"):
        captioners.start(dataclasses.replace(SETTINGS, engine="vlm"), threads=1)


@pytest.mark.parametrize("model", ["./nowhere", "/no/where", "some/deep/folder"])
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_missing_model_folder_is_named_before_the_engine_starts(model, engine):
    settings = dataclasses.replace(SETTINGS, model=model, engine=engine)
    with pytest.raises(UserError, match=f"{model} has no config.json"):
        captioners.start(settings, threads=1)


def test_a_folder_without_weights_is_one_sentence(tmp_path):
    for file in DEMO_LLAVA.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = dataclasses.replace(SETTINGS, model=str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded"):
        captioners.start(settings, threads=1)
