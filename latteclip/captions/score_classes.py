"""Scores of CLIP's best classes of each training image by a multimodal model.

`likelihood`: the log-probability of each class's text as the answer to the image prompt (as of
VisualGPTScore, arXiv 2306.01879). `multiple_choice`: that of the letters of a list of the classes.
`decisions`: that of each class as an option of a typed question. Readers of the scores remove the
bias for a class, for which they need all images.
"""

import json
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax

from latteclip.captions.answers import write_answers
from latteclip.captions.engine import Response, picture_layout, scores_of
from latteclip.captions.questions import (
    Choices,
    Questions,
    Request,
)
from latteclip.clip.classifier import load_classifier
from latteclip.clip.features import classify_table
from latteclip.config.keys import CaptionerSection, ScoresSection
from latteclip.core.class_templates import PLACE, ClassTemplates, fill
from latteclip.core.errors import UserError
from latteclip.core.files import digest

LIKELIHOOD, DECISIONS = "likelihood", "decisions"  # values of scores.kind
TOPK = 5  # classes of CLIP that are the options of an image where there are more
ALL_UP_TO = 20  # classes that are all options, of decisions MAX_DECISIONS
MAX_DECISIONS = 254  # options of a typed question; one more is for none of them
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
    store: str,
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
    if PLACE in prompt:
        raise UserError(
            f"Scores would repeat the pseudo-label ({PLACE}) of prompts.image; change it."
        )
    questions = ClassQuestions(
        images_path,
        pseudo_labels_path,
        prompt,
        picture_layout(captioner),
        shard,
        max_images=scores.max_images,
        classifier_path=classifier_path,
        answers_path=answers_path,
    )
    questions.offer(pseudo_labels_path, class_embeddings_path, scores)
    write_answers(questions, captioner, output, store, labeller, threads)


class ClassQuestions(Questions):
    """Questions about the classes of the R images of a shard, of which K are options of each."""

    scoring = True

    def offer(
        self,
        pseudo_labels_path: str,
        class_embeddings_path: str,
        scores: ScoresSection,
    ) -> None:
        """Choose the options of each image, before its request."""
        if NONE in self.classnames:
            raise UserError(
                f"A class is called {NONE!r}, as the option of images of no class is; remove it "
                "from the classes."
            )
        classifier, described = load_classifier(class_embeddings_path)
        k = len(self.classnames)
        if k > (MAX_DECISIONS if scores.kind == DECISIONS else ALL_UP_TO):
            k = TOPK
        best, _ = classify_table(
            pseudo_labels_path, self.images["image_id"], classifier, k
        )
        self.options = best[self.rows]  # int32 [R, K]
        self.settings = scores
        # Of the classes, if decisions are asked for.
        self.texts = ClassTemplates(**described["class_templates"])

    def request(self, row: int, *, again: bool) -> Request:
        """Return the request about an image."""
        names = self._names(row)
        if self.settings.kind == LIKELIHOOD:
            texts = tuple(
                fill(self.settings.answer or ANSWER, name) for name in names
            )
            return self.about(row, self.prompt, Choices(texts))
        listed = [[names[i] for i in order] for order in self._orders(row)]
        if self.settings.kind == DECISIONS:
            prompts = tuple(map(self._decision, listed))
            choices = Choices(tuple(names), prompts)
        else:
            prompts = tuple(map(letters_prompt, listed))
            choices = Choices(letters_of(len(names)), prompts, by_letters=True)
        return self.about(row, prompts[0], choices)

    def _decision(self, options: Sequence[str]) -> str:
        """Return the question of a decision, in JSON: each option with its text and synonyms."""
        criteria: dict[str, str | None] = {}
        for name in options:
            names = " or ".join([name, *self.texts.synonyms.get(name, [])])
            criteria[name] = fill(self.texts.template, names)
        question = {"instructions": QUESTION, "criteria": {**criteria, NONE: None}}
        return json.dumps(question, ensure_ascii=False)

    def columns(self, row: int, answer: Response | None) -> dict[str, Any]:
        """Return the columns of an image. Without an answer it was not asked about."""
        values = []
        if answer and answer.error is None:
            values = self._values(row, scores_of(answer))
        return {
            "image_id": self.id_of(row),
            "options": self.options[row].tolist() if values else [],
            "log_probabilities": values[: self.options.shape[1]],
            "error": answer.error if answer else None,
        }

    def _values(self, row: int, rows: list[list[float]]) -> list[float]:
        """Return scores of the options, and perhaps of none of them."""
        if self.settings.kind == LIKELIHOOD:
            return rows[0]
        # [orders, K + 1]: from the places in the lists to the options, none of them last.
        listed = [[*order, len(order)] for order in self._orders(row)]
        places = np.argsort(listed, axis=1)
        by_option = np.take_along_axis(np.array(rows), places, axis=1)
        if self.settings.kind == DECISIONS:
            # The mean of probabilities: those of decision models are rounded, and a 0 is no veto.
            with np.errstate(divide="ignore"):
                mean = np.log(np.exp(by_option).mean(axis=0))
        else:
            # The bias for a letter or a place evens out in the mean of logarithms, which are
            # normalised in each order and in the end.
            mean = log_softmax(log_softmax(by_option, axis=1).mean(axis=0))
        return list(mean.tolist())

    def _orders(self, row: int) -> list[list[int]]:
        """Return permutations of the K options, which depend on their names and the image alone."""
        names = self._names(row)
        [checksum] = self.of_members(row, "checksum")
        content = checksum.hex()
        return [
            sorted(
                range(len(names)),
                key=lambda i: digest(str(number), content, names[i]),
            )
            for number in range(ORDERS)
        ]

    def _names(self, row: int) -> list[str]:
        return [self.classnames[c] for c in self.options[row]]


def letters_of(n_options: int) -> tuple[str, ...]:
    """Return a letter for each option, and one for none of them."""
    return tuple(string.ascii_uppercase[: n_options + 1])


def letters_prompt(options: Sequence[str]) -> str:
    """Return the question, with a line for each option and one for none of them."""
    letters = letters_of(len(options))
    lines = [
        f"{letter}. {name}"
        for letter, name in zip(letters, [*options, NONE], strict=True)
    ]
    return "\n".join([QUESTION, *lines, INSTRUCTION])
