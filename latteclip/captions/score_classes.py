"""Scores of CLIP's best classes of each training image by a multimodal model.

`likelihood`: the log-probability of each class's text as the answer to the image prompt (as of
VisualGPTScore, arXiv 2306.01879). `multiple_choice`: that of the letters of a list of the classes.
`decisions`: that of each class as an option of a typed question. Readers of the scores remove the
bias for a class, for which they need all images.
"""

import json
import logging
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.captions.answer_table import Row, write_rows
from latteclip.captions.example_images import MAX_EXAMPLES, SureImages, introduction
from latteclip.captions.groups import Questions, questions_about
from latteclip.captions.metadata import Rest, ScoresMetadata
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
from latteclip.core.class_templates import PLACE, ClassTemplates, fill
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest
from latteclip.core.metadata import GainsMetadata
from latteclip.core.user_tables import by_image_id

log = logging.getLogger(__name__)
FILE_KEY = "scores.file"
ALL_UP_TO = 20  # classes that are all options, of decisions MAX_DECISIONS
MAX_OPTIONS = len(string.ascii_uppercase) - 1  # the last letter is for none of them
MAX_DECISIONS = 254  # options of a typed question; one more is for none of them
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
    gains_path: str | None = None,
    adapted_path: str | None = None,
    shard: str = "1/1",
    voter: str = "",
    threads: int,
) -> None:
    """Write CLASS_SCORES of the images of a shard that are not in the test split.

    `gains_path` is a table of EXPECTED_GAINS where `scores.choose` is gain, and `adapted_path` the
    adapted zero-shot classifier, by which sure images are found where `scores.examples` is 1.
    UserError: the engine does not start, or too many images end without scores.
    """
    job = CaptionJob(
        settings=captioner,
        output=output,
        store=store,
        threads=threads,
        shard=shard,
        file_key=FILE_KEY,
        file=scores.file,
        max_cost=scores.max_cost,
        scoring=True,
        voter=voter,
        examples=min(MAX_EXAMPLES, scores.topk) if scores.examples else 0,
    )
    images = questions_about(images_path, None, "", captioner.picture_layout, job.shard)
    k = _n_options(scores, len(images.classnames))
    _check(scores, prompt, k, images.classnames)
    metadata = _metadata(job, scores, prompt, images.classnames)
    if captioner.reads_file:
        rows = _rows_of_file(images, captioner.engine, scores.file)
        count = write_rows(job, rows, metadata)
    else:
        classifier, described = load_classifier(
            class_embeddings_path, classnames=images.classnames
        )
        # Every shard reads the whole dataset, so that shards agree on the share.
        options, margins = best_classes(pseudo_labels_path, images.image_ids, classifier, k)
        gains = read_gains(gains_path, images.image_ids) if gains_path else None
        descriptions = {}
        sure = None
        if scores.kind == "decisions" or scores.examples:
            texts = ClassTemplates.described_by(described)
            descriptions = describe(texts, images.classnames)
        if scores.examples and adapted_path is not None:
            adapted, _ = load_classifier(adapted_path, classnames=images.classnames)
            labels, leads = best_classes(pseudo_labels_path, images.image_ids, adapted, 1)
            sure = SureImages.by_margin(labels[:, 0], leads)
        own = options[images.members[:, 0]]
        questions = ClassQuestions(images, own, scores, prompt, descriptions, sure)
        asked = _rows_to_ask(scores, images, margins, gains)
        with running(job, images) as runner:
            beyond = runner.ask(asked, questions.request)
            runner.warn_of_rest(len(beyond))
            metadata.beyond_budget = len(beyond)
            metadata.rest = _rest(images, runner.is_asked, gains, is_spent=bool(beyond))
            rows = (questions.row(row, runner.answers(row)) for row in range(len(images)))
            count = write_rows(job, rows, metadata)
    log.info(
        "Wrote the scores of %d images, %d without an answer.",
        count["asked"] - count["failed"],
        count["failed"],
    )
    if metadata.rest is not None:
        log.info("%s", metadata.rest.sentence)


def _n_options(scores: ScoresSection, n_classes: int) -> int:
    """Return how many of CLIP's best classes are the options of an image."""
    most = MAX_DECISIONS if scores.kind == "decisions" else ALL_UP_TO
    return n_classes if n_classes <= most else min(scores.topk, n_classes)


def _metadata(
    job: CaptionJob, scores: ScoresSection, prompt: str, classnames: Sequence[str]
) -> ScoresMetadata:
    likelihood = is_likelihood(scores)
    return ScoresMetadata(
        source=job.source,
        classnames=list(classnames),
        kind=str(scores.kind),
        prompt=prompt if likelihood else letters_prompt(["..."]),
        answer=scores.answer or ANSWER if likelihood else None,
        topk=scores.topk,
        orders=None if likelihood else scores.orders,
        share=scores.share,
        examples=scores.examples,
        choose=scores.choose,
        max_cost=scores.max_cost,
    )


def is_likelihood(scores: ScoresSection) -> bool:
    """Return whether each class's text is scored, and not a list of the classes."""
    return scores.kind == "likelihood"


def _check(scores: ScoresSection, prompt: str, k: int, classnames: Sequence[str]) -> None:
    """Raise UserError for scores of k options that make no sense."""
    if scores.kind == "multiple_choice" and k > MAX_OPTIONS:
        problem = f"there are {MAX_OPTIONS} letters for {k} options; lower scores.topk"
    elif scores.kind == "decisions" and k > MAX_DECISIONS:
        problem = f"{k} options are more than {MAX_DECISIONS}; lower scores.topk"
    elif scores.kind == "decisions" and NONE in classnames:
        problem = f"the class {NONE!r} is an option by itself; rename the class"
    elif PLACE in prompt:
        problem = (
            f"scores would repeat the pseudo-label ({PLACE}) of prompts.image; change it"
        )
    else:
        return
    raise UserError(f"Of scores.kind {scores.kind}, {problem}.")


def _rows_of_file(images: Questions, engine: str, path: str | None) -> Iterator[Row]:
    reader = module_of(engine)
    scores = reader.read_scores(path, FILE_KEY, images.classnames)
    score_of = by_image_id(scores, images.image_ids.to_pylist(), path, FILE_KEY)
    for image_id in images.ids:
        options, values = score_of.get(image_id, ([], []))
        columns = {
            "image_id": image_id,
            "options": options,
            "log_probabilities": values,
            "error": None if options else "the file lacks it",
        }
        yield columns, [Response("", "stop", None, engine=engine)]


@dataclass(frozen=True)
class ExpectedGains:
    """What an answer about each of N images would bring."""

    gains: np.ndarray  # float32 [N]
    order: np.ndarray  # the images to ask about, the first one first
    is_enough: bool  # whether further answers would bring too little


def read_gains(path: str, image_ids: pa.ChunkedArray) -> ExpectedGains:
    """Return the EXPECTED_GAINS of N images."""
    gains, turns = (
        tables.lookup_column(path, tables.EXPECTED_GAINS, "image_id", name, image_ids)
        for name in ("gain", "turn")
    )
    turn = pc.fill_null(turns, len(image_ids)).to_numpy()
    order = np.argsort(turn, kind="stable")
    is_enough = tables.read_metadata(path, GainsMetadata).is_enough
    order = order[: len(turns) - turns.null_count]
    return ExpectedGains(gains.to_numpy(), order, is_enough)


def _rows_to_ask(
    scores: ScoresSection,
    images: Questions,
    margins: np.ndarray,
    gains: ExpectedGains | None,
) -> list[int]:
    """Return the rows of a shard to ask about, the first one first.

    Margins [N] are those of zero-shot scores. Where no budget ends the questions, rows have the
    order of the index.
    """
    n = len(margins)
    order = np.argsort(margins, kind="stable") if gains is None else gains.order
    row_of = np.full(n, -1)
    row_of[images.members[:, 0]] = np.arange(len(images))
    rows = row_of[order[: math.ceil(scores.share * n)]]
    in_shard: list[int] = rows[rows >= 0].tolist()
    return sorted(in_shard) if scores.max_cost is None else in_shard


def _rest(
    images: Questions,
    is_asked: np.ndarray,
    gains: ExpectedGains | None,
    *,
    is_spent: bool,
) -> Rest | None:
    """Return the images of a shard that were not asked about [R], and why."""
    left = images.members[~is_asked, 0]
    if not len(left):
        return None
    if is_spent:
        reason = "max_cost"
    elif gains is not None and gains.is_enough:
        reason = "min_gain"
    else:
        reason = "share"
    changes = None if gains is None else float(gains.gains[left].sum())
    return Rest(len(left), changes, reason)


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
    # Of the classes, if decisions are asked for or examples are shown.
    descriptions: Mapping[str, str]
    sure: SureImages | None = None  # None: no examples are shown

    def request(self, row: int) -> Request:
        """Return the request about an image."""
        names = self._names(row)
        examples, before = self._examples(row)
        paths = [*examples, *self.images.paths_of(row)]
        if is_likelihood(self.settings):
            texts = tuple(fill(self.settings.answer or ANSWER, name) for name in names)
            choices = Choices("likelihood", texts)
            return Request(row, (), before + self.prompt, choices, paths)
        prompts = []
        for order in self._orders(row):
            listed = [names[i] for i in order]
            if self.settings.kind == "decisions":
                prompts.append(self._decision(listed, before))
            else:
                prompts.append(before + letters_prompt(listed))
        is_decision = self.settings.kind == "decisions"
        texts = tuple(names) if is_decision else letters_of(len(names))
        choices = Choices(str(self.settings.kind), texts, tuple(prompts))
        return Request(row, (), prompts[0], choices, paths)

    def _examples(self, row: int) -> tuple[list[str], str]:
        """Return the paths of the examples beside an image, and what the prompt says of them."""
        if self.sure is None:
            return [], ""
        likely = self.options[row, : self.settings.topk].tolist()
        own = int(self.images.members[row, 0])
        paths = []
        texts = []
        for image, label in self.sure.beside(own, likely):
            paths.append(self.images.paths[image].as_py())
            texts.append(self.descriptions[self.images.classnames[label]])
        return paths, introduction(texts)

    def _decision(self, options: Sequence[str], before: str) -> str:
        """Return the question of a decision, in JSON."""
        criteria: dict[str, str | None] = {
            name: self.descriptions[name] for name in options
        }
        if self.settings.none_option:
            criteria[NONE] = None
        question = {"instructions": before + QUESTION, "criteria": criteria}
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
        if is_likelihood(self.settings):
            return scores.log_probabilities[0], None
        if self.settings.kind == "decisions":
            has_none = self.settings.none_option
            orders = self._orders(row)
            return mean_decision(scores.log_probabilities, orders, has_none), None
        letters = letters_of(self.options.shape[1])
        for first in scores.first:
            if first.removeprefix(" ") not in letters:
                return [], f"the answer begins with {first!r}, which is none of the letters"
        values = over_orders(scores.log_probabilities, self._orders(row))
        return values, None if values else "no letter has any probability"

    def _orders(self, row: int) -> list[list[int]]:
        names = self._names(row)
        content = self.images.content_of(row)
        return [order_of(content, number, names) for number in range(self.settings.orders)]

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
    places = torch.tensor([[*order, len(order)] for order in orders]).argsort(dim=1)
    normalised = torch.tensor(rows, dtype=torch.float64).log_softmax(dim=1)
    mean = normalised.gather(1, places).mean(dim=0).log_softmax(dim=0)
    if mean.isnan().any():
        return []
    values: list[float] = mean.tolist()
    return values


def mean_decision(
    rows: Sequence[Sequence[float]], orders: Sequence[Sequence[int]], has_none: bool
) -> list[float]:
    """Return log-probabilities of K options, and perhaps of none of them, over all orders.

    They are means of probabilities: those of decision models are rounded, and a 0 is no veto.
    """
    total = np.zeros(len(rows[0]))
    for row, order in zip(rows, orders, strict=True):
        places = [*order, len(order)] if has_none else list(order)
        total[places] += np.exp(row)
    mean = total / len(rows)
    with np.errstate(divide="ignore"):
        logs: list[float] = np.log(mean).tolist()
    return logs
