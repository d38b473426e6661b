"""Scores of CLIP's best classes of each training image by a multimodal model.

Two kinds. `likelihood`: the log-probability of each class's text as the answer to the image prompt,
summed over its tokens (VisualGPTScore, arXiv 2306.01879, takes P(text | image) for a score).
`multiple_choice`: the classes are listed with letters, whose log-probabilities count.
What a class, a letter or a place in the list gets whatever the image shows is not taken off here:
that needs all images, and is for those who read the scores.

Answers are kept and found again as those of captions are, see `caption`.

Letters: N training images, C classes, K options of an image.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latteclip.captions import letters
from latteclip.captions.ask_scores import ScoreAsking
from latteclip.captions.class_options import class_options, n_options
from latteclip.captions.class_questions import (
    LETTERS,
    LIKELIHOOD,
    ClassQuestions,
    RowScores,
    ScoreSettings,
)
from latteclip.captions.engines import start as engines
from latteclip.captions.engines.base import OWN
from latteclip.captions.requests import image_questions
from latteclip.captions.runner import CaptionJob
from latteclip.captions.scorers import start as scorers
from latteclip.captions.scores import fault
from latteclip.captions.write_scores import write_scores
from latteclip.clip.classifier import load_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError


@dataclass(frozen=True)
class ScoreFiles:
    """What the stage reads."""

    images: str  # an IMAGES table
    pseudo_labels: str  # a PSEUDO_LABELS table
    class_embeddings: str  # W0, the classifier behind it


def score_classes(files: ScoreFiles, settings: ScoreSettings, job: CaptionJob) -> None:
    """Write CLASS_SCORES of the images of a shard that are not in the test split.

    Raises:
        UserError: what is to be asked cannot be, the engine does not start, or too many images
            end without scores.
    """
    settings.check()
    engines.check(job.settings)
    scorers.check(job.settings.engine, str(settings.kind))
    questions = _questions(files, settings, job)
    with _outcomes(questions, job) as outcomes:
        write_scores(questions, outcomes, job.settings, _about(questions, job), job.output)


def _questions(files: ScoreFiles, settings: ScoreSettings, job: CaptionJob) -> ClassQuestions:
    """The images of the shard and their options."""
    prompt = settings.prompt if settings.kind == LIKELIHOOD else ""
    images = image_questions(files.images, None, prompt, job.shard, job.settings.layout)
    _, classnames = tables.read_unlabelled(files.images, training=True)
    k = _check_number(n_options(settings.topk, len(classnames)), settings, classnames)
    if job.settings.engine == OWN:
        nothing = np.empty((len(images), 0), np.int32)
        return ClassQuestions(images, classnames, nothing, np.ones(len(images), bool), settings)
    classifier, _ = load_classifier(files.class_embeddings, classnames=classnames)
    # Of the whole dataset in every shard, so that shards agree on the share.
    found = class_options(files.pseudo_labels, images.image_ids, classifier, k)
    rows = images.members[:, 0]
    unsure = found.unsure(settings.share)
    return ClassQuestions(images, classnames, found.classes[rows], unsure[rows], settings)


def _check_number(k: int, settings: ScoreSettings, classnames: list[str]) -> int:
    """The number of options, if so many can be asked about."""
    if len(classnames) < 2:
        raise UserError(f"Class scores choose among classes, and there is one alone: {classnames}.")
    if settings.kind == LETTERS and k > letters.MOST:
        raise UserError(
            f"There are letters for {letters.MOST} options and not for {k}: lower scores.topk, or "
            "set scores.kind to likelihood."
        )
    return k


def _about(questions: ClassQuestions, job: CaptionJob) -> dict[str, Any]:
    """The metadata: how the scores come about."""
    settings = questions.settings
    by_letters = settings.kind == LETTERS
    shown = letters.letters_prompt(["..."])
    return {
        "classnames": list(questions.classnames),
        "kind": settings.kind,
        "model": job.settings.model,
        "prompt": shown if by_letters else settings.prompt,
        "answer": None if by_letters else settings.template,
        "topk": settings.topk,
        "orders": settings.orders if by_letters else None,
        "share": settings.share,
        "captioner": asdict(job.settings),
    }


@contextlib.contextmanager
def _outcomes(questions: ClassQuestions, job: CaptionJob) -> Iterator[Callable[[int], RowScores]]:
    """What becomes of an image: read from the user's own file, or asked for unless it is held."""
    if job.settings.engine == OWN:
        own = scorers.own_scores(questions.settings.file, questions.classnames)
        yield lambda row: own(questions.images.ids[row])
        return
    with job.keeping("scores", fault) as store:
        asking = ScoreAsking(questions, job.settings, store, job.threads)
        asking.ask()
        yield asking.outcome
