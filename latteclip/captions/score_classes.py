"""Scores of CLIP's best classes of each training image by a multimodal model.

`likelihood`: the log-probability of each class's text as the answer to the image prompt (as of
VisualGPTScore, arXiv 2306.01879). `multiple_choice`: that of the letters of a list of the classes.
`decisions`: that of each class as an option of a typed question. Readers of the scores remove the
bias for a class, for which they need all images.
"""

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from latteclip.captions.answers import Row, ScoresMetadata, write_rows
from latteclip.captions.engine import ChoiceScores, Response, picture_layout
from latteclip.captions.questions import (
    Choices,
    Files,
    Questions,
    Request,
    best_classes,
    questions_about,
)
from latteclip.captions.runner import Job, running
from latteclip.clip.classifier import load_classifier
from latteclip.config.keys import CaptionerSection, ScoresSection
from latteclip.core.class_templates import PLACE, ClassTemplates, fill
from latteclip.core.errors import UserError
from latteclip.core.files import digest

LIKELIHOOD, DECISIONS = "likelihood", "decisions"  # values of scores.kind
TOPK = 5  # classes of CLIP that are the options of an image where there are more
ALL_UP_TO = 20  # classes that are all options, of decisions MAX_DECISIONS
MAX_DECISIONS = 254  # options of a typed question; one more is for none of them
MAX_SIDE = (
    1440  # pixels of a picture of a decision model; with more, servers fail after a minute
)
# A full stop ends the name: "dot." does not begin "dotted.".
ANSWER = " {}."  # whose likelihood is asked for
ORDERS = 2  # random orders in which options are listed
NONE = "none of these"
QUESTION = "Which of these does the photo show?"
INSTRUCTION = "Answer with the letter."


def score_classes(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    scores: ScoresSection,
    prompt: str,
    captioner: CaptionerSection,
    output: str,
    store: str | None = None,
    *,
    classifier_path: str | None = None,
    answers_path: str | None = None,
    shard: str = "1/1",
    labeller: str = "",
    threads: int,
) -> None:
    """Write CLASS_SCORES of the images of a shard that are not in the test split.

    The classifier decides which images come first where there are `max_images`, and a person's
    answers which are left out. UserError: the engine does not start, or too many images end without
    scores.
    """
    layout = picture_layout(captioner)
    if scores.kind == DECISIONS:
        layout = replace(layout, max_side=min(layout.max_side or MAX_SIDE, MAX_SIDE))
    if PLACE in prompt:
        raise UserError(
            f"Scores would repeat the pseudo-label ({PLACE}) of prompts.image; change it."
        )
    files = Files(images_path, pseudo_labels_path, classifier_path, answers_path)
    images = questions_about(files, "", layout, shard, max_images=scores.max_images)
    classnames = images.classnames
    classifier, described = load_classifier(class_embeddings_path, classnames=classnames)
    k = _n_options(scores, len(classnames))
    ids = images.images["image_id"]
    options, _ = best_classes(pseudo_labels_path, ids, classifier, k)
    texts = describe(ClassTemplates.described_by(described), classnames)
    options = options[images.members[:, 0]]
    questions = ClassQuestions(images, options, scores, prompt, texts)
    with running(Job(captioner, threads, store, shard, labeller, True), images) as runner:
        runner.ask(questions.request)
        rows = (questions.row(row, runner.answers(row)) for row in range(len(images)))
        write_rows(rows, _metadata(scores, prompt, classnames), captioner, output)


def _n_options(scores: ScoresSection, n_classes: int) -> int:
    """Return how many of CLIP's best classes are the options of an image."""
    most = MAX_DECISIONS if scores.kind == DECISIONS else ALL_UP_TO
    return n_classes if n_classes <= most else TOPK


def _metadata(
    scores: ScoresSection, prompt: str, classnames: Sequence[str]
) -> ScoresMetadata:
    return ScoresMetadata(
        classnames=list(classnames),
        kind=str(scores.kind),
        prompt=prompt if scores.kind == LIKELIHOOD else letters_prompt(["..."]),
        answer=scores.answer or ANSWER if scores.kind == LIKELIHOOD else None,
    )


def describe(texts: ClassTemplates, classnames: Sequence[str]) -> dict[str, str]:
    """Return the text of each class, with its other names."""
    descriptions = {}
    for name in classnames:
        names = " or ".join([name, *texts.synonyms.get(name, [])])
        descriptions[name] = fill(texts.template, names)
    return descriptions


@dataclass(frozen=True)
class ClassQuestions:
    """The R images of a shard, and the K options of each."""

    images: Questions
    options: np.ndarray  # int32 [R, K]
    settings: ScoresSection
    prompt: str  # the prompt if likelihoods are asked for
    descriptions: Mapping[str, str]  # texts of the classes if decisions are asked for

    def request(self, row: int) -> Request:
        """Return the request about an image."""
        names = self._names(row)
        paths = self.images.paths_of(row)
        kind = str(self.settings.kind)
        if kind == LIKELIHOOD:
            texts = tuple(fill(self.settings.answer or ANSWER, name) for name in names)
            return Request(row, (), self.prompt, Choices(kind, texts), paths)
        listed = [[names[i] for i in order] for order in self._orders(row)]
        if kind == DECISIONS:
            texts = tuple(names)
            prompts = tuple(map(self._decision, listed))
        else:
            texts = letters_of(len(names))
            prompts = tuple(map(letters_prompt, listed))
        return Request(row, (), prompts[0], Choices(kind, texts, prompts), paths)

    def _decision(self, options: Sequence[str]) -> str:
        """Return the question of a decision, in JSON."""
        criteria = {name: self.descriptions[name] for name in options}
        question = {"instructions": QUESTION, "criteria": {**criteria, NONE: None}}
        return json.dumps(question, ensure_ascii=False)

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
        """Return scores of the options, and perhaps of none of them; or why there are none."""
        if answer.error is not None:
            return [], answer.error
        scores = ChoiceScores.parse(answer.text)
        if self.settings.kind == LIKELIHOOD:
            return scores.log_probabilities[0], None
        if self.settings.kind == DECISIONS:
            return mean_decision(scores.log_probabilities, self._orders(row)), None
        letters = letters_of(self.options.shape[1])
        for first in scores.first:
            if first.removeprefix(" ") not in letters:
                return [], f"the answer begins with {first!r}, which is none of the letters"
        values = over_orders(scores.log_probabilities, self._orders(row))
        return values, None if values else "no letter has any probability"

    def _orders(self, row: int) -> list[list[int]]:
        names = self._names(row)
        content = self.images.content_of(row)
        return [order_of(content, number, names) for number in range(ORDERS)]

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


def order_of(content: str, number: int, options: Sequence[str]) -> list[int]:
    """Return a permutation of K options that depends on nothing but the arguments."""
    return sorted(
        range(len(options)), key=lambda i: digest(str(number), content, options[i])
    )


def over_orders(
    rows: Sequence[Sequence[float]], orders: Sequence[Sequence[int]]
) -> list[float]:
    """Return log-probabilities of K options and of none of them, over all orders of the options.

    Those of the K + 1 letters are normalised in each order. Their mean, in which the bias for a
    letter or a place evens out, is normalised again. It is empty where all are minus infinity.
    """
    with np.errstate(invalid="ignore"):
        normalised = _normalised(np.array(rows))
        mean = _normalised(_by_option(normalised, orders).mean(axis=0))
    values: list[float] = mean.tolist()
    return [] if np.isnan(mean).any() else values


def mean_decision(
    rows: Sequence[Sequence[float]], orders: Sequence[Sequence[int]]
) -> list[float]:
    """Return log-probabilities of K options and of none of them, over all orders.

    They are means of probabilities: those of decision models are rounded, and a 0 is no veto.
    """
    with np.errstate(divide="ignore"):
        mean = np.log(_by_option(np.exp(rows), orders).mean(axis=0))
    values: list[float] = mean.tolist()
    return values


def _by_option(values: np.ndarray, orders: Sequence[Sequence[int]]) -> np.ndarray:
    """Return values of listed options [orders, K + 1] by option, none of them last."""
    places = np.argsort([[*order, len(order)] for order in orders], axis=1)
    by_option: np.ndarray = np.take_along_axis(values, places, axis=1)
    return by_option


def _normalised(logs: np.ndarray) -> np.ndarray:
    """Return log-probabilities [..., K] whose probabilities sum to 1."""
    normalised: np.ndarray = logs - np.logaddexp.reduce(logs, axis=-1, keepdims=True)
    return normalised
