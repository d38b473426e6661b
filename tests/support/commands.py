"""Captioning by the command line, with the demo's LLaVA."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import DEMO_LLAVA, ROOT, write_index

from latteclip.captions import caption
from latteclip.captions.engines.base import CaptionerSettings
from latteclip.captions.requests import Request
from latteclip.core import tables
from latteclip.data.images import open_rgb
from latteclip.demo.generate_textures import TextureSettings, generate_textures

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
WRITTEN = ("id", "caption", "finish_reason", "n_tokens", "attempts", "error", "digest")


def read(path):
    columns = tables.read(path, tables.CAPTIONS)[0].to_pydict()
    return {name: columns[name] for name in WRITTEN}


def command(index, settings, output, *more, prompt=PROMPT, kind="images"):
    return [
        *(Path(sys.executable).parent / "latteclip", f"caption-{kind}"),
        *("--images", index, "--prompt", prompt, "--threads", "1"),
        *("--captioner", json.dumps(dataclasses.asdict(settings))),
        *("--output", str(output), *map(str, more)),
    ]


def run(*arguments, env=None, **options):
    """Run caption-images or caption-groups as a command of its own."""
    finished = subprocess.run(
        command(*arguments, **options),
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    assert finished.returncode == 0, finished.stderr
    return finished


def python(code, *arguments, **environment):
    """Run code in a new interpreter."""
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    finished = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | paths | environment,
    )
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    """An index of N demo textures."""
    folder = tmp_path_factory.mktemp("captioners")
    generate_textures(TextureSettings(N, 1, 0.5, seed=9), folder / "data")
    files = sorted(map(str, (folder / "data").rglob("*.png")))[:N]
    return write_index(folder / "images.parquet", files, ["train"] * N, [None] * N, ["a", "b"])


@pytest.fixture(scope="session")
def answers(index, tmp_path_factory):
    """What transformers writes about them: the CAPTIONS columns."""
    output = tmp_path_factory.mktemp("answers") / "captions.parquet"
    caption.caption_images(index, None, PROMPT, SETTINGS, str(output), threads=1)
    return read(output)


def ask(captioner, *requests):
    """The answers in the order of the requests."""
    found = {request.key: answer for request, answer in captioner.answer(requests)}
    return [found[request.key] for request in requests]


def about(path, prompt=PROMPT, key=0):
    return Request(key, [open_rgb(path)], prompt)


def paths_of(index):
    return tables.read(index, tables.IMAGES)[0]["path"].to_pylist()
