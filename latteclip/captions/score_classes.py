"""Scores of CLIP's best classes of each training image by a multimodal model.

`likelihood`: the log-probability of each class's text as the answer to the image prompt (as of
VisualGPTScore, arXiv 2306.01879). `multiple_choice`: that of the letters of a list of the classes.
Readers of the scores remove the bias for a class, for which they need all images.
"""

import logging
import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from latteclip.captions.answer_table import Row, write_rows
from latteclip.captions.groups import Questions, questions_about
from latteclip.captions.metadata import ScoresMetadata
from latteclip.captions.requests import (
    CaptionerSettings,
    Choices,
    ChoiceScores,
    Request,
    Response,
    module_of,
)
from latteclip.captions.runner import CaptionJob, running
from latteclip.clip.classifier import ROWS, Classifier, classify, load_classifier
from latteclip.config.sections.scores import ScoresSection
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


def score_classes(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    scores: ScoresSection,
    prompt: str,
    captioner: CaptionerSettings,
    output: str,
    store: str | None = None,
    *,
    shard: str = "1/1",
    voter: str = "",
    threads: int,
) -> None:
    """Write CLASS_SCORES of the images of a shard that are not in the test split.

    UserError: the engine does not start, or too many images end without scores.
    """
    file = scores.file
    job = CaptionJob(
        captioner,
        output,
        store,
        threads,
        shard,
        FILE_KEY,
        file,
        scoring=True,
        voter=voter,
    )
    images = questions_about(images_path, None, "", captioner.picture_layout, job.shard)
    n = len(images.classnames)
    k = n if n <= ALL_UP_TO else min(scores.topk, n)
    by_letters = is_by_letters(scores)
    _check(scores, prompt, k)
    metadata = ScoresMetadata(
        source=job.source,
        classnames=list(images.classnames),
        kind=str(scores.kind),
        prompt=letters_prompt(["..."]) if by_letters else prompt,
        answer=None if by_letters else scores.answer or ANSWER,
        topk=scores.topk,
        orders=scores.orders if by_letters else None,
        share=scores.share,
    )
    if captioner.reads_file:
        count = write_rows(job, _rows_of_file(images, captioner.engine, file), metadata)
    else:
        classifier, _ = load_classifier(class_embeddings_path, classnames=images.classnames)
        # Every shard reads the whole dataset, so that shards agree on the share.
        options, margins = best_classes(pseudo_labels_path, images.image_ids, classifier, k)
        is_asked = np.zeros(len(margins), bool)
        n_asked = math.ceil(scores.share * len(margins))
        is_asked[np.argsort(margins, kind="stable")[:n_asked]] = True
        of_shard = images.members[:, 0]
        questions = ClassQuestions(images, options[of_shard], scores, prompt)
        asked = np.flatnonzero(is_asked[of_shard]).tolist()
        with running(job, images) as runner:
            runner.ask(map(questions.request, asked), len(asked))
            rows = (questions.row(row, runner.answers(row)) for row in range(len(images)))
            count = write_rows(job, rows, metadata)
    log.info(
        "Wrote the scores of %d images, %d without an answer, %d not asked about.",
        count["asked"] - count["failed"],
        count["failed"],
        len(images) - count["asked"],
    )


def is_by_letters(scores: ScoresSection) -> bool:
    """Return whether the answer is the letter of a class."""
    return scores.kind == "multiple_choice"


def _check(scores: ScoresSection, prompt: str, k: int) -> None:
    """Raise UserError for scores of k options that make no sense."""
    if is_by_letters(scores) and k > MAX_OPTIONS:
        problem = f"there are {MAX_OPTIONS} letters for {k} options; lower scores.topk"
    elif PLACE in prompt:
        problem = (
            f"scores would repeat the pseudo-label ({PLACE}) of prompts.image; change it"
        )
    else:
        return
    raise UserError(f"Of scores.kind {scores.kind}, {problem}.")


def _rows_of_file(images: Questions, engine: str, path: str | None) -> Iterator[Row]:
    found = module_of(engine).read_scores(path, FILE_KEY, images.classnames)
    for image_id in images.ids:
        options, values = found.get(image_id, ([], []))
        columns = {
            "image_id": image_id,
            "options": options,
            "log_probabilities": values,
            "error": None if options else "the file lacks it",
        }
        yield columns, [Response("", "stop", None, engine=engine)]


def best_classes(
    pseudo_labels_path: str, image_ids: pa.ChunkedArray, classifier: Classifier, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best classes int32 [N, K] of N images, and how much better the first is [N]."""
    ids = []
    classes = []
    margins = []
    columns = ["image_id", "image_features"]
    for piece in tables.read_pieces(
        pseudo_labels_path, tables.PSEUDO_LABELS, columns, ROWS
    ):
        features = torch.from_numpy(tables.from_list_column(piece["image_features"]).copy())
        best, scores = classify(features, classifier, max(k, 2))
        ids += piece["image_id"].chunks
        classes.append(best[:, :k].int().numpy())
        margins.append((scores[:, 0] - scores[:, 1]).numpy())
    rows = tables.find_rows(image_ids, pa.chunked_array(ids), pseudo_labels_path)
    return np.concatenate(classes)[rows], np.concatenate(margins)[rows]


@dataclass(frozen=True)
class ClassQuestions:
    """The R images of a shard, and the K options of each."""

    images: Questions
    options: np.ndarray  # int32 [R, K]
    settings: ScoresSection
    prompt: str  # the prompt if likelihoods are asked for

    def request(self, row: int) -> Request:
        """Return the request about an image."""
        names = self._names(row)
        paths = self.images.paths_of(row)
        if not is_by_letters(self.settings):
            texts = tuple(fill(self.settings.answer or ANSWER, name) for name in names)
            choices = Choices("likelihood", texts)
            return Request(row, (), self.prompt, choices, paths)
        prompts = []
        for order in self._orders(row):
            options = [names[i] for i in order]
            prompts.append(letters_prompt(options))
        choices = Choices("multiple_choice", letters_of(len(names)), tuple(prompts))
        return Request(row, (), prompts[0], choices, paths)

    def row(self, row: int, answers: Sequence[Response]) -> Row:
        """Return the columns of an image; without answers it was not asked about."""
        values, error = self._values(row, answers[0]) if answers else ([], None)
        k = self.options.shape[1]
        columns = {
            "image_id": self.images.ids[row],
            "options": self.options[row].tolist() if values else [],
            "log_probabilities": values[:k],
            "none": values[k] if values[k:] else None,
            "error": error,
            "digest": answers[0].digest if answers else None,
        }
        return columns, answers

    def _values(self, row: int, answer: Response) -> tuple[Sequence[float], str | None]:
        """Return scores of the options, and with letters of none of them; or why there are none."""
        if answer.error is not None:
            return [], answer.error
        scores = ChoiceScores.parse(answer.text)
        if not is_by_letters(self.settings):
            return scores.log_probabilities[0], None
        letters = letters_of(self.options.shape[1])
        for first in scores.first:
            if first.removeprefix(" ") not in letters:
                return [], f"the answer begins with {first!r}, which is none of the letters"
        values = over_orders(scores.log_probabilities, self._orders(row))
        return values, None if values else "no letter has any probability"

    def _orders(self, row: int) -> list[list[int]]:
        names = self._names(row)
        image_id = self.images.ids[row]
        return [order_of(image_id, number, names) for number in range(self.settings.orders)]

    def _names(self, row: int) -> list[str]:
        return [self.images.classnames[c] for c in self.options[row]]


def letters_of(n_options: int) -> tuple[str, ...]:
    """Return a letter for each option, and one for none of them."""
    return tuple(string.ascii_uppercase[: n_options + 1])


def letters_prompt(options: Sequence[str]) -> str:
    """Return the question, with a line for each option and one for none of them."""
    letters = letters_of(len(options))
    lines = [
        f"{letter}. {name}" for letter, name in zip(letters, [*options, NONE], strict=True)
    ]
    return "\n".join([QUESTION, *lines, INSTRUCTION])


def order_of(image_id: str, number: int, options: Sequence[str]) -> list[int]:
    """Return a permutation of K options that depends on nothing but the arguments."""
    return sorted(
        range(len(options)), key=lambda i: digest(str(number), image_id, options[i])
    )


def over_orders(
    rows: Sequence[Sequence[float]], orders: Sequence[Sequence[int]]
) -> list[float]:
    """Return log-probabilities of K options and of none of them, over all orders of the options.

    Those of the K + 1 letters are normalised in each order. Their mean, in which the bias for a
    letter or a place evens out, is normalised again. It is empty where all are minus infinity.
    """
    places = torch.tensor([[*order, len(order)] for order in orders]).argsort(dim=1)
    normalised = torch.tensor(rows, dtype=torch.float64).log_softmax(dim=1)
    mean = normalised.gather(1, places).mean(dim=0).log_softmax(dim=0)
    return [] if mean.isnan().any() else [*map(float, mean)]
