"""Small trainings: pictures with labels and captions, settings, and the command."""

import json
import os
import subprocess
from dataclasses import asdict
from functools import partial
from pathlib import Path

from support import warm
from support.checkout import hear_interrupts
from support.tiny import (
    DEMO_CLIP,
    FINETUNE,
    ROOT,
    write_captions,
    write_index,
    write_pictures,
    write_pseudo_labels,
)

from latteclip.config.keys import (
    ClassTextsSection,
    ClipSection,
    FinetuneSection,
    MethodSection,
)
from latteclip.train.settings import FinetuneSettings

CLASSNAMES = ["striped", "dotted", "woven"]


class Inputs:
    """Training pictures with pseudo-labels, beside test pictures that are not on disk."""

    def __init__(self, folder, labels, *, true=None, **pseudo_labels):
        n, self.folder = len(labels), folder
        self.files = write_pictures(folder / "pictures", n)
        self.names = [Path(file).name for file in self.files]
        files = [str(folder / "test0.png"), *self.files, str(folder / "test1.png")]
        splits = ["test", *["train"] * (n - 1), "val", "test"]
        true = [0, *(true or [0] * n), None]
        self.write_index = partial(
            write_index, folder / "i.parquet", files, splits, true, CLASSNAMES
        )
        self.index = self.write_index()
        self.labels = write_pseudo_labels(
            folder / "p.parquet", self.names, labels, **pseudo_labels
        )

    def captions(self, captions):
        """Write a caption of each picture."""
        return write_captions(self.folder / "c.parquet", self.names, captions)

    def groups(self, members, captions):
        """Write captions of groups of pictures."""
        names = [[self.names[i] for i in group] for group in members]
        ids = [str(i) for i in range(len(members))]
        return write_captions(self.folder / "g.parquet", ids, captions, members=names)


def settings(objective="latteclip", model=f"local-dir:{DEMO_CLIP}", **given):
    """Settings of a training of four steps. Keys of the section `finetune` are among the others."""
    section = {key: given.pop(key, value) for key, value in FINETUNE.items()}
    words = {"template": "a photo of a {} texture."}
    words |= {key: given.pop(key) for key in ClassTextsSection.model_fields if key in given}
    flags = given.pop("flags", [])
    return FinetuneSettings(
        clip=ClipSection(model=model, pretrained=None),
        **words,
        method=MethodSection(
            objective=objective, finetune=FinetuneSection(**section), **given
        ),
        module="flyp" if objective.startswith("flyp") else objective,
        flags=flags,
    )


def start(folder, files, settings, seed=3):
    """Start a training by the command line, in a warm process (see `warm`)."""
    python = str(warm.interpreter())
    command = [python, "-m", "latteclip"]
    command += ["finetune", "--files", json.dumps(asdict(files)), "--seed", str(seed)]
    command += ["--settings", settings.model_dump_json()]
    command += ["--fold", "{}", "--checkpoint-minutes", "0"]
    command += ["--device", "cpu", "--threads", "1"]
    for part in ("model", "history", "checkpoint", "log"):
        command += [f"--{part}", str(folder / part)]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
