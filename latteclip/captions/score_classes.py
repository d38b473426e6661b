"""Scores of CLIP's best classes of each training image by a multimodal model.

Two kinds. `likelihood`: the log-probability of each class's text as the answer to the image prompt,
summed over its tokens (VisualGPTScore, arXiv 2306.01879, takes P(text | image) for a score).
`multiple_choice`: the classes are listed with letters, whose log-probabilities count.
The bias for a class, a letter or a place in the list, whatever the image shows, is not removed
here: that needs all images. It is left to the readers of the scores.

Answers are cached as those of captions are, see `caption`.

Letters: N training images, R images of a shard, C classes, D embedding width, K options of an
image.
"""

import contextlib
import functools
import logging
import math
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.captions.engines import base as engines
from latteclip.captions.engines.base import (
    FILE,
    KINDS,
    LIKELIHOOD,
    MULTIPLE_CHOICE,
    CaptionerSettings,
    Scores,
    letter_of,
    log_sum,
)
from latteclip.captions.requests import Choices, Questions, Shard, image_questions
from latteclip.captions.runner import CaptionJob, Outcome, Runner, Tally, tokens_of, write_table
from latteclip.clip.classifier import ROWS, Classifier, classify, load_classifier
from latteclip.core import tables
from latteclip.core.class_templates import PLACE, fill
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest

log = logging.getLogger(__name__)
ALL_UP_TO = 20  # classes that are all options
MAX_OPTIONS = len(string.ascii_uppercase) - 1  # with letters; the last is for none of them
# A full stop ends the name: "dot." does not begin "dotted.".
ANSWER = " {}."
NONE = "none of these"
QUESTION = "Which of these does the photo show?"
INSTRUCTION = "Answer with the letter."


@dataclass(frozen=True)
class ScoreSettings:
    """How classes are scored."""

    kind: str | None  # one of KINDS
    topk: int  # options; all classes where there are few
    answer: str | None  # of likelihood: the text with a place for the class name; null: ANSWER
    orders: int  # of multiple_choice: in how many orders the options are shown
    share: float  # of the images, those of which CLIP is least sure
    file: str | None = None  # of engine file
    prompt: str = ""  # of likelihood

    @property
    def template(self) -> str:
        """Return the answer with a place for the class name."""
        return ANSWER if self.answer is None else self.answer

    def check(self) -> None:
        """Refuse questions that make no sense.

        Raises:
            UserError: says which key of the configuration to change.
        """
        if self.kind not in KINDS:
            found = "null" if self.kind is None else repr(self.kind)
            raise UserError(f"scores.kind is {found}; set it to {' or '.join(KINDS)}.")
        if self.kind == LIKELIHOOD and PLACE not in self.template:
            raise UserError(
                f"scores.answer {self.template!r} has no {PLACE} for the class name: all classes "
                "would score the same."
            )
        if self.kind == LIKELIHOOD and PLACE in self.prompt:
            raise UserError(
                f"The image prompt {self.prompt!r} names the pseudo-label, which scores would then "
                f"repeat: take {PLACE} out of prompts.image, or set scores.kind to multiple_choice."
            )


@dataclass(frozen=True)
class ScoreOutcome(Outcome):
    """What became of a row of CLASS_SCORES."""

    options: Sequence[int] = ()
    log_probabilities: Sequence[float] = ()
    none: float | None = None

    @property
    def states(self) -> tuple[str, ...]:
        """Return what is counted of the row, for the log and the check."""
        return (*super().states, *(("scored",) if self.options else ()))


NOT_ASKED = ScoreOutcome()


def score_classes(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    scores: ScoreSettings,
    captioner: CaptionerSettings,
    output: str,
    store: str | None = None,
    *,
    shard: str = "1/1",
    threads: int,
) -> None:
    """Write CLASS_SCORES of the images of a shard that are not in the test split.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table.
        class_embeddings_path: W0, the classifier behind it.
        scores: which classes are scored, and how.
        captioner: the settings of the captioner.
        output: the scores.
        store: folder of the answers that outlive this run. None: the answers are not cached.
        shard: which part of how many.
        threads: CPU threads.

    Raises:
        UserError: the settings make no sense, the engine does not start, or too many images end
            without scores.
    """
    job = CaptionJob(captioner, output, store, threads, Shard.parse(shard))
    scores.check()
    engines.check(job.settings, scores.kind)
    prompt = scores.prompt if scores.kind == LIKELIHOOD else ""
    images = image_questions(images_path, None, prompt, job.shard, job.settings.layout)
    _, classnames = tables.read_unlabelled(images_path, training=True)
    k = _n_options(scores, classnames)
    if job.settings.engine == FILE:
        nothing = np.empty((len(images), 0), np.int32)
        questions = ClassQuestions(images, classnames, nothing, np.ones(len(images), bool), scores)
    else:
        classifier, _ = load_classifier(class_embeddings_path, classnames=classnames)
        # Of the whole dataset in every shard, so that shards agree on the share.
        options, margins = best_classes(pseudo_labels_path, images.image_ids, classifier, k)
        rows = images.members[:, 0]
        is_asked = _least_sure(margins, scores.share)[rows]
        questions = ClassQuestions(images, classnames, options[rows], is_asked, scores)
    with _outcomes(questions, job) as outcomes:
        tally = write_table(
            job,
            tables.CLASS_SCORES,
            len(images),
            outcomes,
            lambda row: {"image_id": images.ids[row]},
            functools.partial(_check, job.settings),
            _metadata(questions, job.settings.model),
        )
    log.info(
        "Wrote the scores of %d images, %d without an answer, %d not asked about.",
        tally.count["scored"],
        tally.count["failed"],
        len(images) - tally.count["scored"] - tally.count["failed"],
    )


def _metadata(questions: "ClassQuestions", model: str) -> dict[str, Any]:
    settings = questions.settings
    by_letters = settings.kind == MULTIPLE_CHOICE
    return {
        "classnames": list(questions.classnames),
        "kind": settings.kind,
        "model": model,
        "prompt": letters_prompt(["..."]) if by_letters else settings.prompt,
        "answer": None if by_letters else settings.template,
        "topk": settings.topk,
        "orders": settings.orders if by_letters else None,
        "share": settings.share,
    }


# --- options of an image -------------------------------------------------------------------------


def _n_options(settings: ScoreSettings, classnames: Sequence[str]) -> int:
    """Return the number of options of an image."""
    if len(classnames) < 2:
        raise UserError(f"Class scores choose among classes, and there is only one: {classnames}.")
    n = len(classnames)
    k = n if n <= ALL_UP_TO else min(settings.topk, n)
    if settings.kind == MULTIPLE_CHOICE and k > MAX_OPTIONS:
        raise UserError(
            f"There are letters for {MAX_OPTIONS} options and not for {k}: lower scores.topk, or "
            "set scores.kind to likelihood."
        )
    return k


def best_classes(
    pseudo_labels_path: str, image_ids: pa.ChunkedArray, classifier: Classifier, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best classes of images under a classifier, by their stored features.

    Args:
        pseudo_labels_path: a PSEUDO_LABELS table.
        image_ids: of the N images.
        classifier: of C classes, C > 1.
        k: how many of them, at most C.

    Returns:
        int32 [N, K], the best first, equal ones in the order of the classes; and float32 [N],
        cosine of the best class over that of the second.

    Raises:
        UserError: the table lacks an image.
    """
    classes = np.empty((len(image_ids), k), np.int32)
    margins = np.empty(len(image_ids), np.float32)
    missing = np.ones(len(image_ids), bool)
    columns = ["image_id", "image_features"]
    for piece in tables.read_pieces(pseudo_labels_path, tables.PSEUDO_LABELS, columns, ROWS):
        places = pc.index_in(piece["image_id"], image_ids.combine_chunks())
        wanted = places.is_valid().to_numpy()
        rows = places.drop_null().to_numpy()
        best, scores = classify(_features(piece)[torch.from_numpy(wanted)], classifier, max(k, 2))
        classes[rows], missing[rows] = best[:, :k].numpy(), False
        margins[rows] = (scores[:, 0] - scores[:, 1]).numpy()
    if missing.any():
        raise UserError(
            f"{pseudo_labels_path} lacks {missing.sum()} of {len(missing)} images; delete it and "
            "rerun its stage."
        )
    return classes, margins


def _features(piece: pa.Table) -> torch.Tensor:
    """Return the features [rows, D] of a piece of the table."""
    column = piece["image_features"].combine_chunks()
    return torch.from_numpy(column.flatten().to_numpy().reshape(len(column), -1).copy())


def _least_sure(margins: np.ndarray, share: float) -> np.ndarray:
    """Return bool [N]: the share of the images that have the smallest margins, at least one."""
    result = np.zeros(len(margins), bool)
    result[np.argsort(margins, kind="stable")[: math.ceil(share * len(margins))]] = True
    return result


# --- questions and outcomes ----------------------------------------------------------------------


@dataclass(frozen=True)
class ClassQuestions:
    """The R images of a shard, and the options of each."""

    images: Questions
    classnames: Sequence[str]  # C
    options: np.ndarray  # int32 [R, K]
    is_asked: np.ndarray  # bool [R]
    settings: ScoreSettings

    def ask(self, row: int, attempt: int = 1) -> tuple[str, Choices]:
        """Return the prompt about an image, and the choices that go with it.

        All orders of the options are one request, and share the image.
        """
        names = self._names(row)
        if self.settings.kind == LIKELIHOOD:
            texts = tuple(fill(self.settings.template, name) for name in names)
            return self.settings.prompt, Choices(LIKELIHOOD, texts)
        prompts = tuple(letters_prompt([names[i] for i in order]) for order in self._orders(row))
        return prompts[0], Choices(MULTIPLE_CHOICE, letters_of(len(names)), prompts)

    def outcome(self, runner: Runner, row: int) -> ScoreOutcome:
        """Return what became of an image."""
        if not self.is_asked[row]:
            return NOT_ASKED
        cached = runner.answer(row)
        if cached is None:
            return ScoreOutcome(error=runner.error(row), digest=runner.digest(row))
        scores = Scores.parse(cached.text)
        values, error = self._values(row, scores)
        by_letters = self.settings.kind == MULTIPLE_CHOICE
        read, written = tokens_of(cached)
        return ScoreOutcome(
            error=error,
            digest=runner.digest(row),
            engine=cached.engine,
            date=cached.date,
            n_read=read,
            n_written=written,
            options=self.options[row].tolist() if values else (),
            log_probabilities=(values[:-1] if by_letters else values) if values else (),
            none=values[-1] if by_letters and values else None,
        )

    def _values(self, row: int, scores: Scores) -> tuple[list[float] | None, str | None]:
        """Return the log-probabilities of the options, or why there are none."""
        if self.settings.kind == LIKELIHOOD:
            return list(scores.log_probabilities[0]), None
        letters = letters_of(self.options.shape[1])
        for first in scores.first:
            if letter_of(first, letters) is None:
                return None, f"the answer begins with {first!r}, which is none of the letters"
        values = over_orders(scores.log_probabilities, self._orders(row))
        return values, "no letter has any probability" if values is None else None

    def _orders(self, row: int) -> list[list[int]]:
        names, image_id = self._names(row), self.images.ids[row]
        return [order_of(image_id, number, names) for number in range(self.settings.orders)]

    def _names(self, row: int) -> list[str]:
        return [self.classnames[c] for c in self.options[row]]


@contextlib.contextmanager
def _outcomes(
    questions: ClassQuestions, job: CaptionJob
) -> Iterator[Callable[[int], ScoreOutcome]]:
    """Yield what becomes of an image: scores of the user's file, or of an engine."""
    if job.settings.engine == FILE:
        path = questions.settings.file
        scores = engines.module_of(FILE).read_scores(path, questions.classnames)
        yield lambda row: _outcome_of_file(scores.get(questions.images.ids[row]))
        return
    with job.cache("scores") as cache:
        with Runner(
            job, questions.images, cache, questions.ask, unit="scores", scoring=True
        ) as runner:
            runner.ask(np.flatnonzero(questions.is_asked).tolist())
        yield functools.partial(questions.outcome, runner)


def _outcome_of_file(scores: tuple[list[int], list[float]] | None) -> ScoreOutcome:
    if scores is None:
        return ScoreOutcome(error="the file has no scores of it", engine=FILE)
    return ScoreOutcome(engine=FILE, options=scores[0], log_probabilities=scores[1])


def _check(settings: CaptionerSettings, tally: Tally) -> None:
    """Raise UserError where too many images have no scores."""
    failed = tally.count["failed"]
    asked = tally.count["scored"] + failed
    if failed <= settings.max_failed * asked:
        return
    reason = (
        f"of {failed} of {asked} images (the first error: {tally.first_error}), more than "
        f"captioner.max_failed ({settings.max_failed:.0%})"
    )
    if settings.engine == FILE:
        raise UserError(f"scores.file has no scores {reason}; add them.")
    raise UserError(
        f"{settings.model} gave no scores {reason}; try another scores.kind or captioner.model, or "
        "rerun: only the requests without an answer are repeated."
    )


# --- multiple choice by letters ------------------------------------------------------------------


def letters_of(n_options: int) -> tuple[str, ...]:
    """Return a letter for each of the options, and one for none of them."""
    return tuple(string.ascii_uppercase[: n_options + 1])


def letters_prompt(options: Sequence[str]) -> str:
    """Return the question, with a line for each option and one for none of them."""
    letters = letters_of(len(options))
    lines = [f"{letter}. {name}" for letter, name in zip(letters, [*options, NONE], strict=True)]
    return "\n".join([QUESTION, *lines, INSTRUCTION])


def order_of(image_id: str, number: int, options: Sequence[str]) -> list[int]:
    """Return the places of the K options in an order of this number: a permutation.

    It depends on nothing but the arguments, so that a rerun asks the same question.
    """
    return sorted(range(len(options)), key=lambda i: digest(str(number), image_id, options[i]))


def over_orders(
    rows: Sequence[Sequence[float]], orders: Sequence[Sequence[int]]
) -> list[float] | None:
    """Return log-probabilities of K options and of none of them, over all orders of the options.

    In each order the log-probabilities of the letters are normalised among themselves. Their mean,
    in which the bias for a letter or a place in one order evens out, is normalised once more.

    Args:
        rows: for each order the log-probabilities of K + 1 letters.
        orders: for each the option at each of the K places.

    Returns:
        K + 1 numbers in the order of the options; None where every one is minus infinity.
    """
    n = len(orders[0])
    sums = [0.0] * (n + 1)
    for row, order in zip(rows, orders, strict=True):
        normalised = log_normalised(row)
        if normalised is None:
            return None
        for place, option in enumerate([*order, n]):
            sums[option] += normalised[place]
    return log_normalised([total / len(orders) for total in sums])


def log_normalised(values: Sequence[float]) -> list[float] | None:
    """Return log-probabilities whose probabilities sum to one; None where all are -inf."""
    total = log_sum(values)
    return None if total == -math.inf else [value - total for value in values]
