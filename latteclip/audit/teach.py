"""`latteclip teach`: ask about the training images from which the labels learn most.

In the first phase, images are asked about whose label is in doubt, and the labels learn from every
ten answers. In the second phase, images drawn at random from all others check the labels as they
were before that phase, so that the interval holds at every moment.

Letters: N training images, P images of the pool that is computed with, C classes.
"""

import logging
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from latteclip.audit.app import ALL_OFFERED, OFFERED, UPCOMING, Interview, Question
from latteclip.config.hub_names import slug
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.answer_files import is_foreign, read_foreign
from latteclip.labels.answers import (
    CHECK,
    CLASS,
    TEACH,
    UNSURE,
    Answer,
    content_digest,
    labelled_rows,
    read_answers,
    read_exported,
    teaching_schema,
)
from latteclip.labels.fusion import ROUNDS, LabelModel
from latteclip.labels.guarantees import confidence_sequence
from latteclip.labels.predictors import FusionSettings, read_predictors

log = logging.getLogger(__name__)
SEED = 0
BATCH = 10  # questions between which the labels learn
STEPS = 2  # rounds of the fusion that it takes; with many classes one
MAX_POOL, MIN_POOL = 4096, 1024  # images that are computed with
POOL_ENTRIES = 2**20  # of their table of classes; fewer images have more classes
LIGHT_ENTRIES = 2**19  # above which the confusion matrix is not learned again
COVERAGE = 2  # images of each class to begin with, where nothing is known of the classes
ITERATIONS = 20  # of k-means
DOUBT = 0.5  # a label below this probability is in doubt
DENIED, CERTAIN = 0.02, 0.9  # an answer this unlikely, against a class this likely, is asked again
MAX_TEXTS = 256  # captions encoded at once


class TeachingSession(Interview):
    """The questions of `latteclip teach`, and the labels that learn from their answers."""

    def __init__(self, folder: str | Path, budget: int, checking: int | None = None) -> None:
        """Begin, or go on with the answers that are saved.

        Args:
            folder: of a dataset's results.
            budget: how many questions, beside labels that were imported.
            checking: how many of them check the labels; None: half.

        Raises:
            UserError: the labels are not there yet, or the budget is below 1.
        """
        if budget < 1:
            raise UserError(f"--budget {budget} is no number of images.")
        self.folder = Path(folder)
        if not (self.folder / "fused_labels.parquet").is_file():
            raise UserError(
                f"{self.folder / 'fused_labels.parquet'} does not exist: run the workflow first, "
                f"snakemake -j4 labels --config dataset={self.folder.absolute().name}."
            )
        self.index, classnames = tables.read_unlabelled(
            self.folder / "images.parquet", training=True
        )
        self.ids, self.paths = (tables.Strings(self.index[name]) for name in ("image_id", "path"))
        self.classnames = classnames
        self.title, self.images, self.purpose = "Teach", "training images", "takes them"
        self.command = f"latteclip teach {shlex.quote(str(folder))}"
        self.path = self.folder / "answers.json"
        self.schema = teaching_schema(self.folder.absolute().name, classnames)
        answers, _ = read_answers(self.path, self.schema)
        imported = sum(one.phase is None for one in answers.values())
        self.total = min(budget + imported, len(self.ids))
        checking = budget // 2 if checking is None else checking
        self.n_taught = self.total - min(checking, self.total)
        self._order = np.random.default_rng(SEED).permutation(len(self.ids))
        self.pool = self._choose_pool(answers)  # [P] ascending rows
        self._place = {int(row): place for place, row in enumerate(self.pool)}
        self._questions: list[Question] = []
        self.model, self._start = self._read_model(), torch.zeros(0)
        self._labels = self._start = self.posterior().argmax(dim=1)
        self._restore(answers)

    # --- interview -------------------------------------------------------------------------------

    def question(self, number: int) -> Question:
        return self._questions[number]

    def open_questions(self, answers: Mapping[str, Answer]) -> list[Question]:
        found = [one for one in self._questions if one.key not in answers]
        while not found and self.answered(answers) < self.total:
            added = self._next_questions(answers)
            if not added:
                break
            self._questions += added
            found = added
        return found[:UPCOMING]

    def all_open(self, answers: Mapping[str, Answer]) -> list[Question]:
        """Ask the least certain images at once: offline, nothing is learned in between."""
        answers = dict(answers)
        found = [one for one in self._questions if one.key not in answers]
        while len(answers) < self.total:
            for one in found:
                answers.setdefault(one.key, Answer(one.image_id, UNSURE, phase=one.phase))
            added = self._next_questions(answers, learn=False)
            if not added:
                break
            self._questions += added
            found += added
        return found

    def admitted(self, answers: Mapping[str, Answer]) -> dict[str, Answer]:
        row_of = self._rows([one.image_id for one in answers.values()])
        asked = {question.key: question.phase for question in self._questions}
        found = {}
        for key, answer in answers.items():
            if answer.content is not None:
                found[key] = answer
                continue
            if answer.image_id not in row_of:
                raise UserError(f"{answer.image_id!r} is not a training image of {self.folder}.")
            content = content_digest(self.paths[row_of[answer.image_id]])
            found[key] = replace(answer, content=content, phase=asked.get(key, answer.phase))
        return found

    def read_file(self, path: str) -> dict[str, Answer]:
        """Return the answers that the page exported, or labels from another tool."""
        if is_foreign(path):
            return read_foreign(path, list(self.ids), list(self.paths), self.classnames)
        return read_exported(path, self.schema)

    def status(self, answers: Mapping[str, Answer]) -> str:
        if checked := self._checked(answers):
            right, n, low, high = checked
            return (
                f"Images drawn at random now check the labels. By {n} of them, {100 * low:.0f} to "
                f"{100 * high:.0f} % of all labels are right ({right} of {n}). This interval holds "
                "at every moment."
            )
        posterior = self.posterior()
        changed = int((posterior.argmax(dim=1) != self._start).sum())
        doubtful = int((posterior.amax(dim=1) < DOUBT).sum())
        return f"{changed:,} labels changed so far, and {doubtful:,} are in doubt."

    def result(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        quoted = shlex.quote(str(self.folder))
        return {
            "sentence": self.status(answers),
            "tables": [],
            "steps": [
                (
                    "Run the workflow again as before: labels, the recommended model and the pages "
                    "follow the answers.",
                    f"snakemake -j4 --config dataset={self.schema.dataset}",
                ),
                (
                    "To export the labels:",
                    f"latteclip labels export {quoted} --format csv --output labels.csv",
                ),
            ],
        }

    # --- learning --------------------------------------------------------------------------------

    def _choose_pool(self, answers: Mapping[str, Answer]) -> np.ndarray:
        """Return the rows of answered, random and the least certain images."""
        n = len(self.ids)
        size = max(MIN_POOL, min(MAX_POOL, POOL_ENTRIES // len(self.classnames)))
        if n <= size:
            return np.arange(n)
        confidence = tables.lookup_column(
            self.folder / "fused_labels.parquet",
            *(tables.FUSED_LABELS, "image_id", "fused_confidence"),
            self.index["image_id"],
        ).to_numpy()
        known = self._rows([one.image_id for one in answers.values()]).values()
        drawn = self._order[: max(2 * self.total, size // 2)]
        doubtful = np.argpartition(confidence, size // 2)[: size // 2]
        return np.unique(np.concatenate([np.array(list(known), np.int64), drawn, doubtful]))

    def _read_model(self) -> LabelModel:
        """Read what the fused labels are made of for the pool, and learn without answers."""
        made = tables.read_metadata(self.folder / "fused_labels.parquet", "image_id")
        votes = {"captions": "captions/images.parquet", "class scores": "class_scores.parquet"}
        path = str(self.folder / votes[made["votes"]])
        eyes = (slug({"model": eye["model"]}) for eye in made.get("eyes", []))
        known = read_predictors(
            self.index["image_id"].take(pa.array(self.pool)),
            self.classnames,
            FusionSettings(made["model"], made.get("pretrained"), MAX_TEXTS),
            str(self.folder / "pseudo_labels.parquet"),
            str(self.folder / "class_embeddings.safetensors"),
            image_captions_path=path if made["votes"] == "captions" else None,
            class_scores_path=path if made["votes"] == "class scores" else None,
            eyes_paths=[str(self.folder / "eyes" / f"{eye}.parquet") for eye in eyes],
            device="auto",
            threads=torch.get_num_threads(),
        )
        model = LabelModel(known.images, known.votes, known.others)
        if model.is_informed:
            model.learn(STEPS if self._is_light else ROUNDS)
        return model

    @property
    def _is_light(self) -> bool:
        """Whether there are so many classes that little is learned between answers."""
        return len(self.pool) * len(self.classnames) > LIGHT_ENTRIES

    def posterior(self) -> torch.Tensor:
        """Return the probabilities [P, C]."""
        rows = torch.arange(len(self.pool))
        if not self.model.is_informed:
            return self.model.images.zero_shot(rows).exp()
        return self.model.log_posterior(rows).exp()

    def _learn(self, answers: Mapping[str, Answer]) -> None:
        """Learn from the answers of the first phase."""
        taught = {  # known by name alone, so that no file is read
            key: replace(one, content=None) for key, one in answers.items() if one.phase != CHECK
        }
        pool = self.index.take(pa.array(self.pool))
        labelled, _ = labelled_rows(taught, pool, self.classnames)
        if len(labelled.rows):
            self.model = self.model.answered(labelled)
        if len(labelled.rows) and self.model.is_informed:
            for _ in range(1 if self._is_light else STEPS):
                self.model.step(light=self._is_light)
        self._labels = self.posterior().argmax(dim=1)

    # --- questions -------------------------------------------------------------------------------

    def _restore(self, answers: Mapping[str, Answer]) -> None:
        """Go on from saved answers, whose questions come first."""
        row_of = self._rows([one.image_id for one in answers.values()])
        for answer in answers.values():
            if answer.image_id in row_of:
                row = row_of[answer.image_id]
                self._questions.append(self._ask(row, answer.phase or TEACH, repeat=answer.repeat))
        if answers:
            self._learn(answers)

    def _next_questions(
        self, answers: Mapping[str, Answer], *, learn: bool = True
    ) -> list[Question]:
        taught = [one for one in answers.values() if one.phase != CHECK]
        checking = len(answers) > len(taught)  # once it has begun, it goes on
        left = self.n_taught - len(taught)
        if learn and taught and not checking:
            self._learn(answers)
        if left > 0 and not checking:
            again = self._to_repeat(answers) if learn else []
            rows = self._doubtful(answers, min(BATCH, left) - len(again))
            return [*(self._ask(row, TEACH) for row in rows), *again]
        names = {one.image_id for one in answers.values()}
        rest = (int(row) for row in self._order if self.ids[int(row)] not in names)
        wanted = min(BATCH, self.total - len(answers))
        return [self._ask(row, CHECK) for _, row in zip(range(wanted), rest, strict=False)]

    def _ask(self, row: int, phase: str, *, repeat: bool = False) -> Question:
        names = list(self.classnames)
        if len(names) > ALL_OFFERED:
            likely, place = torch.arange(OFFERED), self._place.get(row)
            if place is not None:
                likely = self._predicted(place).topk(OFFERED).indices
            names = [self.classnames[label] for label in sorted(likely.tolist())]
        return Question(len(self._questions), self.ids[row], self.paths[row], names, phase, repeat)

    def _predicted(self, place: int) -> torch.Tensor:
        """Return the log-probabilities [C] of an image by everything but its answer."""
        rows = torch.tensor([place])
        if not self.model.is_informed:
            return self.model.images.zero_shot(rows)[0]
        return self.model.predicted_log_posterior(rows)[0]

    def _doubtful(self, answers: Mapping[str, Answer], n: int) -> list[int]:
        """Return rows with the smallest margins, or in their place images that cover the pool."""
        posterior = self.posterior()
        best = posterior.topk(min(2, posterior.shape[1]), dim=1).values
        margins = best[:, 0] - best[:, -1]
        asked = {one.image_id for one in answers.values()}
        order = [self.pool[place] for place in margins.argsort().tolist()]
        if not self.model.parameters.test.significant:
            order = [*self._centres(), *order]
        rows = dict.fromkeys(int(row) for row in order if self.ids[int(row)] not in asked)
        return list(rows)[:n]

    def _centres(self) -> list[int]:
        """Return the images nearest to the centres of k-means."""
        images = self.model.images
        x = torch.as_tensor(images.centred[torch.arange(len(self.pool))])
        k = min(COVERAGE * len(self.classnames), max(1, self.n_taught // 2), len(x))
        return [int(self.pool[place]) for place in medoids(x, k)]

    def _to_repeat(self, answers: Mapping[str, Answer]) -> list[Question]:
        """Return the answered image whose answer all else denies most, to ask about once more."""
        repeated = {one.image_id for one in answers.values() if one.repeat}
        worst: tuple[float, int] | None = None
        row_of = self._rows([one.image_id for one in answers.values()])
        for answer in answers.values():
            place = self._place.get(row_of.get(answer.image_id, -1))
            if answer.kind != CLASS or answer.image_id in repeated or place is None:
                continue
            predicted = self._predicted(place).exp()
            share = predicted[self.classnames.index(str(answer.classname))].item()
            if share < DENIED and predicted.max() > CERTAIN and (not worst or share < worst[0]):
                worst = (share, int(self.pool[place]))
        return [self._ask(worst[1], TEACH, repeat=True)] if worst else []

    def _checked(self, answers: Mapping[str, Answer]) -> tuple[int, int, float, float] | None:
        """Return right and checked labels, and the interval for the share of all that are right."""
        checking = [one for one in answers.values() if one.phase == CHECK and one.kind != UNSURE]
        if not checking:
            return None
        row_of = self._rows([one.image_id for one in checking])
        right = 0
        for answer in checking:
            place = self._place.get(row_of.get(answer.image_id, -1))
            if place is not None and answer.kind == CLASS:
                right += self.classnames[int(self._labels[place])] == answer.classname
        n = len(self.ids)
        taught = len({one.image_id for one in answers.values() if one.phase != CHECK})
        ends = confidence_sequence(right, len(checking), n - taught)
        low, high = ((taught + share * (n - taught)) / n for share in ends)
        return right, len(checking), low, high

    def _rows(self, image_ids: list[str]) -> dict[str, int]:
        places = pa.compute.index_in(pa.array(image_ids, pa.string()), self.index["image_id"])
        rows = zip(image_ids, places.to_pylist(), strict=True)
        return {name: row for name, row in rows if row is not None}


def medoids(x: torch.Tensor, k: int) -> list[int]:
    """Return the rows of x [n, D] nearest to k centres of k-means, without repetition."""
    draw = torch.Generator().manual_seed(SEED)
    chosen = [int(torch.randint(len(x), (1,), generator=draw))]
    distance = (x - x[chosen[0]]).square().sum(dim=1)
    while len(chosen) < k and distance.sum() > 0:
        chosen.append(int(torch.multinomial(distance, 1, generator=draw)))
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(dim=1))
    centres = x[chosen].clone()
    for _ in range(ITERATIONS):
        nearest = torch.cdist(x, centres).argmin(dim=1)
        for number in range(len(centres)):
            if (nearest == number).any():
                centres[number] = x[nearest == number].mean(dim=0)
    return list(dict.fromkeys(torch.cdist(x, centres).argmin(dim=0).tolist()))
