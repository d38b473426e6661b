"""A dataset whose classes are scored, and a scorer that remembers what it was asked."""

import zlib

import numpy as np
import pytest
import torch
from support.captioning import SETTINGS, Dataset, mean_colour
from support.sections import changed
from support.tiny import write_pseudo_labels

from latteclip.captions.engine import scored as scored_answer
from latteclip.captions.score_classes import score_classes
from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config.keys import ScoresSection
from latteclip.core import tables

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
    if request.choices.kind == "likelihood":
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

    def __init__(self, folder, n_classes=25, first="class 0"):
        others = [f"class {number}" for number in range(1, n_classes)]
        super().__init__(folder, [first, *others])
        self.output = folder / "class_scores.parquet"
        rng = np.random.default_rng(3)
        self.features = rng.normal(size=(N + 2, WIDTH)).astype(np.float32)
        self.weights = rng.normal(size=(n_classes, WIDTH)).astype(np.float32)
        index, _ = tables.read_unlabelled(self.images, training=False)
        ids, splits = (index[name].to_pylist() for name in ("image_id", "split"))
        labels = folder / "pseudo_labels.parquet"
        write_pseudo_labels(labels, ids, [0] * len(ids), 0.5, self.features, splits)
        embeddings = str(folder / "class_embeddings.safetensors")
        classifier = Classifier.of(torch.from_numpy(self.weights))
        described = {"classnames": self.classnames, "template": "a photo of a {}."}
        described["class_synonyms"] = {"class 1": ["first class"]}
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
        return tables.read(output or self.output, tables.CLASS_SCORES).to_pydict()


@pytest.fixture
def scored(tmp_path):
    return ScoredDataset(tmp_path)
