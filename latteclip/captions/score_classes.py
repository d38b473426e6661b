"""Scores of CLIP's best classes of each training image by a multimodal model.

`likelihood`: the log-probability of each class's text as the answer to the image prompt (as of
VisualGPTScore, arXiv 2306.01879). `multiple_choice`: that of the letters of a list of the classes.
Readers of the scores remove the bias for a class, for which they need all images.

Letters: N training images, R images of a shard, K options of an image.
"""

import contextlib
import functools
import logging
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

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
from latteclip.captions.requests import Answer, Choices, Questions, failed, questions_about
from latteclip.captions.runner import CaptionJob, Row, Runner, running, write_table
from latteclip.clip.classifier import ROWS, Classifier, classify, load_classifier
from latteclip.core import tables
from latteclip.core.class_templates import PLACE, fill
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest

log = logging.getLogger(__name__)
FILE_KEY = "scores.file"
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
        return ANSWER if self.answer is None else self.answer

    @property
    def by_letters(self) -> bool:
        return self.kind == MULTIPLE_CHOICE

    def check(self, engine: str) -> None:
        """Raise UserError for questions that make no sense, or that the engine cannot answer."""
        if self.kind not in KINDS:
            raise UserError(f"scores.kind is {self.kind}; set it to {' or '.join(KINDS)}.")
        if self.by_letters:
            return
        if engine == "openai":
            raise UserError(
                "captioner.engine openai has no likelihoods: set scores.kind to multiple_choice, "
                "or captioner.engine to vllm or transformers."
            )
        if PLACE in self.prompt:
            raise UserError(
                f"The image prompt {self.prompt!r} names the pseudo-label, which scores would then "
                f"repeat: take {PLACE} out of prompts.image, or set scores.kind to multiple_choice."
            )


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

    Raises:
        UserError: the settings make no sense, the engine does not start, or too many images end
            without scores.
    """
    job = CaptionJob(captioner, output, store, threads, shard, scoring=True)
    scores.check(captioner.engine)
    prompt = "" if scores.by_letters else scores.prompt
    images = questions_about(images_path, None, prompt, captioner.layout, job.shard)
    k = _n_options(scores, images.classnames)
    with contextlib.ExitStack() as stack:
        if captioner.engine == FILE:
            found = engines.module_of(FILE).read_scores(scores.file, images.classnames)
            row_of = functools.partial(_of_file, images, found)
        else:
            classifier, _ = load_classifier(class_embeddings_path, classnames=images.classnames)
            # Of the whole dataset in every shard, so that shards agree on the share.
            options, margins = best_classes(pseudo_labels_path, images.image_ids, classifier, k)
            rows = images.members[:, 0]
            is_asked = _least_sure(margins, scores.share)[rows]
            questions = ClassQuestions(images, options[rows], scores)
            runner = stack.enter_context(running(job, images, questions.ask))
            runner.ask(np.flatnonzero(is_asked).tolist())
            row_of = functools.partial(questions.row, runner, is_asked)
        metadata = {
            "classnames": list(images.classnames),
            "model": captioner.model,
            "kind": scores.kind,
            "prompt": letters_prompt(["..."]) if scores.by_letters else scores.prompt,
            "answer": None if scores.by_letters else scores.template,
            "topk": scores.topk,
            "orders": scores.orders if scores.by_letters else None,
            "share": scores.share,
        }
        count = write_table(job, tables.CLASS_SCORES, len(images), row_of, FILE_KEY, metadata)
    log.info(
        "Wrote the scores of %d images, %d without an answer, %d not asked about.",
        *(count["asked"] - count["failed"], count["failed"], len(images) - count["asked"]),
    )


# --- options of an image -------------------------------------------------------------------------


def _n_options(settings: ScoreSettings, classnames: Sequence[str]) -> int:
    n = len(classnames)
    k = n if n <= ALL_UP_TO else min(settings.topk, n)
    if settings.by_letters and k > MAX_OPTIONS:
        raise UserError(
            f"There are letters for {MAX_OPTIONS} options and not for {k}: lower scores.topk, or "
            "set scores.kind to likelihood."
        )
    return k


def best_classes(
    pseudo_labels_path: str, image_ids: pa.ChunkedArray, classifier: Classifier, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best classes of images under a classifier, by their stored features.

    Returns:
        int32 [N, K], the best first, equal ones in the order of the classes; and float32 [N],
        cosine of the best class over that of the second.

    Raises:
        UserError: the table lacks an image.
    """
    classes = np.empty((len(image_ids), k), np.int32)
    margins = np.full(len(image_ids), np.nan, np.float32)
    columns = ["image_id", "image_features"]
    for piece in tables.read_pieces(pseudo_labels_path, tables.PSEUDO_LABELS, columns, ROWS):
        places = pc.index_in(piece["image_id"], image_ids)
        rows = places.drop_null().to_numpy()
        features = torch.from_numpy(tables.from_list_column(piece["image_features"]).copy())
        wanted = torch.from_numpy(places.is_valid().to_numpy())
        best, scores = classify(features[wanted], classifier, max(k, 2))
        classes[rows] = best[:, :k].numpy()
        margins[rows] = (scores[:, 0] - scores[:, 1]).numpy()
    if missing := int(np.isnan(margins).sum()):
        raise UserError(
            f"{pseudo_labels_path} lacks {missing} of {len(margins)} images; delete it and rerun "
            "its stage."
        )
    return classes, margins


def _least_sure(margins: np.ndarray, share: float) -> np.ndarray:
    """Return bool [N]: the share of the images that have the smallest margins, at least one."""
    result = np.zeros(len(margins), bool)
    result[np.argsort(margins, kind="stable")[: math.ceil(share * len(margins))]] = True
    return result


# --- questions and answers -----------------------------------------------------------------------


@dataclass(frozen=True)
class ClassQuestions:
    """The R images of a shard, and the options of each."""

    images: Questions
    options: np.ndarray  # int32 [R, K]
    settings: ScoreSettings

    def ask(self, row: int, _: int) -> tuple[str, Choices]:
        """Return the prompt about an image, and the choices that go with it.

        All orders of the options are one request, and share the image.
        """
        names = self._names(row)
        if not self.settings.by_letters:
            texts = tuple(fill(self.settings.template, name) for name in names)
            return self.settings.prompt, Choices(LIKELIHOOD, texts)
        prompts = tuple(letters_prompt([names[i] for i in order]) for order in self._orders(row))
        return prompts[0], Choices(MULTIPLE_CHOICE, letters_of(len(names)), prompts)

    def row(self, runner: Runner, is_asked: np.ndarray, row: int) -> Row:
        answers = runner.answers(row) if is_asked[row] else []
        values, error = None, answers[0].error if answers else None
        if answers and error is None:
            values, error = self._values(row, Scores.parse(answers[0].text))
        columns = {
            "image_id": self.images.ids[row],
            "options": self.options[row].tolist() if values else [],
            "log_probabilities": (values or [])[: self.options.shape[1]],
            "none": values[-1] if values and self.settings.by_letters else None,
            "error": error,
            "digest": answers[0].digest if answers else None,
        }
        return columns, answers

    def _values(self, row: int, scores: Scores) -> tuple[list[float] | None, str | None]:
        if not self.settings.by_letters:
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
        return [self.images.classnames[c] for c in self.options[row]]


def _of_file(images: Questions, found: dict[str, tuple[list[int], list[float]]], row: int) -> Row:
    options, values = found.get(images.ids[row], ([], []))
    answer = Answer("", "stop", None, engine=FILE) if options else failed("the file lacks it")
    columns = {"image_id": images.ids[row], "options": options, "log_probabilities": values}
    return {**columns, "none": None, "error": answer.error, "digest": None}, [answer]


# --- multiple choice by letters ------------------------------------------------------------------


def letters_of(n_options: int) -> tuple[str, ...]:
    """Return a letter for each option, and one for none of them."""
    return tuple(string.ascii_uppercase[: n_options + 1])


def letters_prompt(options: Sequence[str]) -> str:
    """Return the question, with a line for each option and one for none of them."""
    letters = letters_of(len(options))
    lines = [f"{letter}. {name}" for letter, name in zip(letters, [*options, NONE], strict=True)]
    return "\n".join([QUESTION, *lines, INSTRUCTION])


def order_of(image_id: str, number: int, options: Sequence[str]) -> list[int]:
    """Return a permutation of K options that depends on nothing but the arguments."""
    return sorted(range(len(options)), key=lambda i: digest(str(number), image_id, options[i]))


def over_orders(
    rows: Sequence[Sequence[float]], orders: Sequence[Sequence[int]]
) -> list[float] | None:
    """Return log-probabilities of K options and of none of them, over all orders of the options.

    In each order the log-probabilities of the K + 1 letters are normalised among themselves. Their
    mean, in which the bias for a letter or a place in one order evens out, is normalised once more.
    The result is None where every number is minus infinity.
    """
    n = len(orders[0])
    sums = [0.0] * (n + 1)
    for row, order in zip(rows, orders, strict=True):
        normalised = _log_normalised(row)
        if normalised is None:
            return None
        for place, option in enumerate([*order, n]):
            sums[option] += normalised[place]
    return _log_normalised([total / len(orders) for total in sums])


def _log_normalised(values: Sequence[float]) -> list[float] | None:
    """Return log-probabilities whose probabilities sum to one; None where all are -inf."""
    total = log_sum(values)
    return None if total == -math.inf else [value - total for value in values]
