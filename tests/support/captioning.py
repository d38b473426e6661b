"""A dataset to caption, and an engine that remembers what it was asked."""

from pathlib import Path

import numpy as np
import pytest
from support.sections import changed
from support.tiny import write_index, write_pictures, write_pseudo_labels

from latteclip.captions import caption, engine
from latteclip.captions.answers import AnswersMetadata
from latteclip.captions.engine import Response
from latteclip.config.keys import CaptionerSection, GroupsSection
from latteclip.core import tables

SETTINGS = CaptionerSection(
    engine="transformers",
    model="some/model",
    revision="abc",
    dtype="float32",
    max_new_tokens=9,
    max_model_len=99,
    gpu_memory_utilization=0.5,
    batch_size=3,
    max_image_side=None,
)
GROUPS = GroupsSection(canvas=64)
CLASSNAMES = ["red dots", "lines"]
LABELS = [1, 0, 1, 1, 1, 0, 1]


def mean_colour(picture):
    return " ".join(str(round(value)) for value in np.asarray(picture).mean(axis=(0, 1)))


def describe(request):
    """An answer that depends on all that is asked, and on nothing else."""
    return Response(
        f" {request.prompt}\n {'/'.join(map(mean_colour, request.pictures))}", "stop", 7
    )


class Recorder:
    """Remembers what it is asked and answers out of order, two requests late."""

    def __init__(self, reply=describe):
        self.reply = reply
        self.requests, self.starts = [], 0
        self.version = "recorder 1"

    def answer(self, requests):
        late = []
        for request in requests:
            self.requests.append(request)
            late.append(request)
            if len(late) == 3:
                answered = late.pop()
                yield answered, self.reply(answered)
        for request in late:
            yield request, self.reply(request)

    def forget(self):
        self.requests, self.starts = [], 0


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()

    def start(settings, threads, *, scoring=False):
        recorder.starts += 1
        return recorder

    monkeypatch.setattr(engine, "start", start)
    return recorder


class Dataset:
    """7 training images and 2 test images that are not even on the disk."""

    def __init__(self, folder, classnames=CLASSNAMES):
        self.folder, self.classnames = folder, classnames
        self.files = write_pictures(folder / "pictures", 7)
        self.index(self.files)
        self.names = [Path(file).name for file in self.files]
        self.labels = write_pseudo_labels(
            folder / "pseudo_labels.parquet", self.names, LABELS
        )
        self.output = folder / "captions" / "out.parquet"

    def index(self, files):
        first, last = (str(self.folder / "pictures" / f"test{i}.png") for i in range(2))
        splits = ["test", *["train"] * (len(files) - 1), "val", "test"]
        files = [first, *files, last]
        path = self.folder / "images.parquet"
        self.images = write_index(path, files, splits, [0] * len(files), self.classnames)

    def job(self, *, store="store", output=None, shard="1/1", **changes):
        return {
            "captioner": changed(SETTINGS, **changes),
            "output": str(output or self.output),
            "store": str(self.folder / store),
            "threads": 1,
            "shard": shard,
        }

    def caption_images(self, prompt="What?", *, labels=None, **options):
        caption.caption_images(self.images, labels, prompt, **self.job(**options))
        return read(options.get("output") or self.output)

    def caption_groups(self, prompt="All {}?", groups=GROUPS, **options):
        caption.caption_groups(
            self.images, self.labels, prompt, groups, **self.job(**options)
        )
        return read(options.get("output") or self.output)


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path)


def read(path):
    return tables.read(path, tables.CAPTIONS).to_pydict()


def provenance(path):
    return tables.read_metadata(path, AnswersMetadata)
