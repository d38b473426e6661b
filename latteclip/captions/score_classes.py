"""Scores of CLIP's best classes of each training image by a multimodal model.

Two kinds. `likelihood`: the log-probability of each class's text as the answer to the image prompt,
summed over its tokens (VisualGPTScore, arXiv 2306.01879, takes P(text | image) for a score).
`letters`: the classes are listed with letters, and the log-probabilities of the letters count.
What a class, a letter or a place in the list gets whatever the image shows is not taken off here:
that needs all images, and is for those who read the scores.

Answers are kept and found again as those of captions are, see `caption`.

Letters: N training images, C classes, K options of an image.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latteclip.captions import letters
from latteclip.captions.answers import AnswerStore
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
from latteclip.captions.engines.base import OWN, CaptionerSettings
from latteclip.captions.questions import image_questions
from latteclip.captions.scorers import start as scorers
from latteclip.captions.scores import holds_scores
from latteclip.captions.shard import ALL_ROWS, Shard
from latteclip.captions.write_scores import write_scores
from latteclip.clip.classifier import load_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.signals import ending_in_order


@dataclass(frozen=True)
class ScoreFiles:
    """What the stage reads."""

    images: str  # an IMAGES table
    pseudo_labels: str  # a PSEUDO_LABELS table
    class_embeddings: str  # W0, the classifier behind it


@dataclass(frozen=True)
class ScoreJob:
    """How a table of scores is made."""

    captioner: CaptionerSettings
    output: str
    store: str | None  # folder of the kept answers; None keeps them for this run alone
    threads: int
    shard: Shard = ALL_ROWS


def score_classes(files: ScoreFiles, settings: ScoreSettings, job: ScoreJob) -> None:
    """Write CLASS_SCORES of the images of a shard that are not in the test split.

    Raises:
        UserError: what is to be asked cannot be, the engine does not start, or too many images
            end without scores.
    """
    settings.check()
    engines.check(job.captioner)
    scorers.check(job.captioner.engine, str(settings.kind))
    questions = _questions(files, settings, job)
    with _outcomes(questions, job) as outcomes:
        write_scores(questions, outcomes, job.captioner, _about(questions, job), job.output)


def _questions(files: ScoreFiles, settings: ScoreSettings, job: ScoreJob) -> ClassQuestions:
    """The images of the shard and their options."""
    prompt = settings.prompt if settings.kind == LIKELIHOOD else ""
    side = job.captioner.max_image_side
    images = image_questions(files.images, None, prompt, job.shard, side)
    _, classnames = tables.read_unlabelled(files.images, training=True)
    k = _check_number(n_options(settings.topk, len(classnames)), settings, classnames)
    if job.captioner.engine == OWN:
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


def _about(questions: ClassQuestions, job: ScoreJob) -> dict[str, Any]:
    """The metadata: how the scores come about."""
    settings = questions.settings
    by_letters = settings.kind == LETTERS
    shown = letters.letters_prompt(["..."])
    return {
        "classnames": list(questions.classnames),
        "kind": settings.kind,
        "model": job.captioner.model,
        "prompt": shown if by_letters else settings.prompt,
        "answer": None if by_letters else settings.template,
        "topk": settings.topk,
        "orders": settings.orders if by_letters else None,
        "share": settings.share,
        "captioner": asdict(job.captioner),
    }


@contextlib.contextmanager
def _outcomes(questions: ClassQuestions, job: ScoreJob) -> Iterator[Callable[[int], RowScores]]:
    """What becomes of an image: read from the user's own file, or asked for unless it is held."""
    if job.captioner.engine == OWN:
        own = scorers.own_scores(questions.settings.file, questions.classnames)
        yield lambda row: own(questions.images.ids[row])
        return
    kept = f"The scores so far are kept in {job.store}: rerun to go on."
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_in_order(kept if job.store else "Without --store, all is lost."))
        folder = job.store or stack.enter_context(tempfile.TemporaryDirectory())
        store = stack.enter_context(AnswerStore(folder, holds_scores))
        asking = ScoreAsking(questions, job.captioner, store, job.threads)
        asking.ask()
        yield asking.outcome
