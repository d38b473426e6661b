"""Captioning by the command line, with the demo's LLaVA."""

import dataclasses
import json
import sys
from pathlib import Path

from support.tiny import DEMO_LLAVA

from latteclip.captions.engines.base import CaptionerSettings
from latteclip.core import tables

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
