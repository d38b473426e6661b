"""A dataset to caption or to score, and an engine that remembers what it was asked."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import write_index, write_pictures, write_pseudo_labels

from latteclip.captions import answers, caption
from latteclip.captions.answers import AnswersMetadata
from latteclip.captions.engine import Response
from latteclip.captions.engine import scored as scored_answer
from latteclip.captions.score_classes import score_classes
from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config.keys import CaptionerSection, ScoresSection
from latteclip.core import tables


def changed(section, **keys):
    """Return a section, which is frozen, with other values, which are validated."""
    return type(section)(**{**dict(section), **keys})


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
CANVAS = 64
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

    def __init__(self):
        self.reply = describe
        self.forget()

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

    monkeypatch.setattr(answers, "start", start)
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

    def caption_images(self, prompt="What?", **options):
        caption.caption_images(self.images, None, prompt, **self.job(**options))
        return read(options.get("output") or self.output)

    def caption_groups(self, prompt="All {}?", **options):
        job = self.job(**options)
        caption.caption_images(self.images, self.labels, prompt, **job, canvas=CANVAS)
        return read(options.get("output") or self.output)


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path)


def read(path):
    return tables.read(path).to_pydict()


def provenance(path):
    return tables.read_metadata(path, AnswersMetadata)


N, WIDTH = 7, 5
LIKELIHOOD = ScoresSection(kind="likelihood")
LETTERS = ScoresSection(kind="multiple_choice")
DECISIONS = ScoresSection(kind="decisions")


def value(*parts):
    """A log-probability that depends on all of the parts."""
    return -(zlib.crc32("|".join(parts).encode()) % 1000) / 100


def likelihoods(request):
    """Scores that depend on the picture, the prompt and the text of each choice."""
    [picture] = request.pictures
    texts = request.choices.texts
    return [value(mean_colour(picture), request.prompt, text) for text in texts]


def options_of(prompt):
    """The names behind the letters of a prompt, in their order."""
    return [line[3:] for line in prompt.split("\n") if line[1:3] == ". "]


def letters(request, prompt):
    """Scores that depend on the picture and the option behind each letter, not on its place."""
    [picture] = request.pictures
    return [value(mean_colour(picture), name) for name in options_of(prompt)]


def reply(request):
    if not request.choices.prompts:
        return scored_answer(request.choices, [likelihoods(request)])
    rows = [letters(request, prompt) for prompt in request.choices.prompts]
    first = [request.choices.texts[int(np.argmax(row))] for row in rows]
    return scored_answer(request.choices, rows, first)


@pytest.fixture
def scorer(recorder):
    recorder.reply = reply
    return recorder


class ScoredDataset(Dataset):
    """7 training images and 2 test images that are not even on the disk; C classes."""

    def __init__(self, folder, n_classes=25):
        super().__init__(folder, [f"class {number}" for number in range(n_classes)])
        self.output = folder / "class_scores.parquet"
        rng = np.random.default_rng(3)
        self.features = rng.normal(size=(N + 2, WIDTH)).astype(np.float32)
        self.weights = rng.normal(size=(n_classes, WIDTH)).astype(np.float32)
        index, _ = tables.read_unlabelled(self.images, training=False)
        ids = index["image_id"].to_pylist()
        labels = folder / "pseudo_labels.parquet"
        write_pseudo_labels(labels, ids, [0] * len(ids), 0.5, self.features)
        embeddings = str(folder / "class_embeddings.safetensors")
        classifier = Classifier.of(torch.from_numpy(self.weights))
        synonyms = {"class 1": ["first class"]}
        words = {"templates": ["a photo of a {}."], "synonyms": synonyms}
        described = {"classnames": self.classnames, "class_templates": words}
        save_classifier(embeddings, classifier, described)
        self.inputs = [self.images, str(labels), embeddings]
        # The adapted classifier differs from the texts.
        self.adapted = str(folder / "adapted.safetensors")
        others = rng.normal(size=(n_classes, WIDTH)).astype(np.float32)
        self.adapted_weights = others
        save_classifier(self.adapted, Classifier.of(torch.from_numpy(others)), described)

    @property
    def cosines(self):
        """Of the training images, [N, C]."""
        return self.features[1 : 1 + N] @ self.weights.T

    def score(
        self,
        settings=LIKELIHOOD,
        *,
        store="store",
        output=None,
        shard="1/1",
        answers=None,
        **changes,
    ):
        """Run the stage; what of `changes` is the captioner's goes there. The table's columns."""
        prompt = changes.pop("prompt", "What?" if settings.kind == "likelihood" else "")
        captioner = {
            key: changes.pop(key)
            for key in changes.keys() - set(ScoresSection.model_fields)
        }
        score_classes(
            *self.inputs,
            changed(settings, **changes),
            prompt,
            changed(SETTINGS, **captioner),
            str(output or self.output),
            str(self.folder / store),
            classifier_path=self.adapted,
            answers_path=answers,
            shard=shard,
            threads=1,
        )
        return tables.read(output or self.output).to_pydict()


@pytest.fixture
def scored(tmp_path):
    return ScoredDataset(tmp_path)
