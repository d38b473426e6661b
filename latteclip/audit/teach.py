"""`latteclip teach`: ask about the training images from which the labels learn most.

In the first phase, images are asked about whose label is in doubt, and the labels learn from every
ten answers. In the second phase, images drawn at random from all others check the labels as they
were before that phase, so that the interval holds at every moment.

Letters: N training images, P images of the pool that is computed with, C classes.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from latteclip.audit.app import ALL_OFFERED, OFFERED, Interview, Question
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
    teaching_schema,
)
from latteclip.labels.fusion import ROUNDS, LabelModel
from latteclip.labels.guarantees import confidence_sequence
from latteclip.labels.predictors import FusionSettings, read_predictors

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
        """
        if budget < 1:
            raise UserError(f"--budget {budget} is no number of images.")
        self.folder, self.labels = Path(folder), Path(folder) / "fused_labels.parquet"
        dataset = self.folder.absolute().name
        if not self.labels.is_file():
            raise UserError(
                f"{self.labels} does not exist: run the workflow first, "
                f"snakemake -j4 labels --config dataset={dataset}."
            )
        self.index, self.classnames = tables.read_unlabelled(
            self.folder / "images.parquet", training=True
        )
        self.ids, self.paths = (tables.Strings(self.index[name]) for name in ("image_id", "path"))
        self.title, self.images = "Teach", "training images"
        self.command = f"latteclip teach {shlex.quote(str(folder))}"
        self.path = self.folder / "answers.json"
        self.schema = teaching_schema(dataset, self.classnames)
        answers, _ = read_answers(self.path, self.schema)
        imported = sum(one.phase is None for one in answers.values())
        self.total = min(budget + imported, len(self.ids))
        checking = budget // 2 if checking is None else checking
        self.n_taught = self.total - min(checking, self.total)
        self._order = np.random.default_rng(SEED).permutation(len(self.ids))
        row_of = self._rows(answers.values())
        self.pool = self._choose_pool([*row_of.values()])  # [P] ascending rows
        self._place = {int(row): place for place, row in enumerate(self.pool)}
        self.model = self._read_model()
        self.posterior = self._probabilities()  # [P, C]
        self._start = self._labels
        self.questions = []
        self._ask(
            (row_of[one.image_id], one.phase or TEACH, one.repeat)
            for one in answers.values()
            if one.image_id in row_of
        )
        if answers:
            self._learn(answers)

    # --- interview -------------------------------------------------------------------------------

    def open_questions(self, answers: Mapping[str, Answer]) -> list[Question]:
        found = super().open_questions(answers)
        if not found and self.answered(answers) < self.total:
            return self._next_questions(answers)
        return found

    def all_open(self, answers: Mapping[str, Answer]) -> list[Question]:
        """Ask the least certain images at once: offline, nothing is learned in between."""
        answers, found = dict(answers), super().open_questions(answers)
        while len(answers) < self.total:
            for one in found:
                answers.setdefault(one.key, Answer(one.image_id, UNSURE, phase=one.phase))
            if not (added := self._next_questions(answers, learn=False)):
                break
            found += added
        return found

    def admitted(self, answers: Mapping[str, Answer]) -> dict[str, Answer]:
        row_of = self._rows(answers.values())
        asked = {question.key: question.phase for question in self.questions}
        found = {}
        for key, answer in answers.items():
            if answer.image_id not in row_of and answer.content is None:
                raise UserError(f"{answer.image_id!r} is not a training image of {self.folder}.")
            found[key] = answer
            if answer.content is None:
                content = content_digest(self.paths[row_of[answer.image_id]])
                found[key] = replace(answer, content=content, phase=asked.get(key, answer.phase))
        return found

    def read_file(self, path: str) -> dict[str, Answer]:
        """Return the answers that the page exported, or labels from another tool."""
        if is_foreign(path):
            return read_foreign(path, list(self.ids), list(self.paths), self.classnames)
        return super().read_file(path)

    def answered(self, answers: Mapping[str, Answer]) -> int:
        return min(len(answers), self.total)

    def status(self, answers: Mapping[str, Answer]) -> str:
        if checked := self._checked(answers):
            right, n, low, high = checked
            return (
                f"Images drawn at random now check the labels. By {n} of them, {100 * low:.0f} to "
                f"{100 * high:.0f} % of all labels are right ({right} of {n}). This interval holds "
                "at every moment."
            )
        changed = int((self._labels != self._start).sum())
        doubtful = int((self.posterior.amax(dim=1) < DOUBT).sum())
        return f"{changed:,} labels changed so far, and {doubtful:,} are in doubt."

    def result(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        export = f"latteclip labels export {shlex.quote(str(self.folder))}"
        steps = {
            "Run the workflow again as before: labels, the recommended model and the pages follow "
            "the answers.": f"snakemake -j4 --config dataset={self.schema.dataset}",
            "To export the labels:": f"{export} --format csv --output labels.csv",
        }
        return {"sentence": self.status(answers), "tables": [], "steps": list(steps.items())}

    # --- learning --------------------------------------------------------------------------------

    def _choose_pool(self, answered: list[int]) -> np.ndarray:
        """Return the rows of answered, random and the least certain images."""
        n = len(self.ids)
        size = max(MIN_POOL, min(MAX_POOL, POOL_ENTRIES // len(self.classnames)))
        if n <= size:
            return np.arange(n)
        column = tables.FUSED_LABELS, "image_id", "fused_confidence"
        confidence = tables.lookup_column(self.labels, *column, self.index["image_id"]).to_numpy()
        drawn = self._order[: max(2 * self.total, size // 2)]
        doubtful = np.argpartition(confidence, size // 2)[: size // 2]
        return np.unique(np.concatenate([np.array(answered, np.int64), drawn, doubtful]))

    def _read_model(self) -> LabelModel:
        """Read what the fused labels are made of for the pool, and learn without answers."""
        made = tables.read_metadata(self.labels, "image_id")
        by_captions = made["votes"] == "captions"
        file = "captions/images.parquet" if by_captions else "class_scores.parquet"
        votes = str(self.folder / file)
        eyes = (slug({"model": eye["model"]}) for eye in made.get("eyes", []))
        known = read_predictors(
            self.index["image_id"].take(pa.array(self.pool)),
            self.classnames,
            FusionSettings(made["model"], made.get("pretrained"), MAX_TEXTS),
            str(self.folder / "pseudo_labels.parquet"),
            str(self.folder / "class_embeddings.safetensors"),
            image_captions_path=votes if by_captions else None,
            class_scores_path=None if by_captions else votes,
            eyes_paths=[str(self.folder / "eyes" / f"{eye}.parquet") for eye in eyes],
            device="auto",
            threads=torch.get_num_threads(),
        )
        model = LabelModel(known.images, known.votes, known.others)
        model.learn(STEPS if self._is_light else ROUNDS)
        return model

    @property
    def _is_light(self) -> bool:
        """Whether there are so many classes that little is learned between answers."""
        return len(self.pool) * len(self.classnames) > LIGHT_ENTRIES

    @property
    def _labels(self) -> torch.Tensor:
        """The likeliest classes [P]."""
        return self.posterior.argmax(dim=1)

    def _probabilities(self) -> torch.Tensor:
        """Return the probabilities [P, C] of the classes."""
        return self.model.log_posterior(torch.arange(len(self.pool))).exp()

    def _learn(self, answers: Mapping[str, Answer]) -> None:
        """Learn from the answers of the first phase."""
        taught = {  # known by name alone, so that no file is read
            key: replace(one, content=None) for key, one in answers.items() if one.phase != CHECK
        }
        pool = self.index.take(pa.array(self.pool))
        labelled, _ = labelled_rows(taught, pool, self.classnames)
        if len(labelled.rows):
            self.model = self.model.answered(labelled)
            for _ in range(1 if self._is_light else STEPS):
                self.model.step(light=self._is_light)
        self.posterior = self._probabilities()

    # --- questions -------------------------------------------------------------------------------

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
            return self._ask(
                [*((row, TEACH, False) for row in rows), *((row, TEACH, True) for row in again)]
            )
        names = {one.image_id for one in answers.values()}
        rest = (int(row) for row in self._order if self.ids[int(row)] not in names)
        wanted = max(0, min(BATCH, self.total - len(answers)))
        return self._ask((row, CHECK, False) for row in islice(rest, wanted))

    def _ask(self, asked: Iterable[tuple[int, str, bool]]) -> list[Question]:
        """Return new questions about rows: each with its phase, and whether it is a repetition."""
        asked, start = list(asked), len(self.questions)
        offered = self._offered([row for row, _, _ in asked])
        self.questions += [
            Question(start + i, self.ids[row], self.paths[row], offered[i], phase, repeat)
            for i, (row, phase, repeat) in enumerate(asked)
        ]
        return self.questions[start:]

    def _offered(self, rows: list[int]) -> list[list[str]]:
        """Return the classes that the page offers for each row."""
        if len(self.classnames) <= ALL_OFFERED:
            return [list(self.classnames)] * len(rows)
        places = [place for row in rows if (place := self._place.get(row)) is not None]
        likely = iter(self._predicted(places).topk(OFFERED).indices.sort(dim=1).values.tolist())
        first = list(range(OFFERED))  # of an image outside the pool
        found = [next(likely) if row in self._place else first for row in rows]
        return [[self.classnames[label] for label in labels] for labels in found]

    def _predicted(self, places: list[int]) -> torch.Tensor:
        """Return the log-probabilities [n, C] of images by everything but their answers."""
        return self.model.predicted_log_posterior(torch.tensor(places, dtype=torch.long))

    def _doubtful(self, answers: Mapping[str, Answer], n: int) -> list[int]:
        """Return rows with the smallest margins, or in their place images that cover the pool."""
        best = self.posterior.topk(min(2, self.posterior.shape[1]), dim=1).values
        margins = best[:, 0] - best[:, -1]
        asked = {one.image_id for one in answers.values()}
        order = margins.argsort().tolist()
        if not self.model.parameters.test.significant:
            order = [*self._centres(), *order]
        rows = dict.fromkeys(int(self.pool[place]) for place in order)
        return [row for row in rows if self.ids[row] not in asked][:n]

    def _centres(self) -> list[int]:
        """Return the places of the images nearest to the centres of k-means."""
        x = torch.as_tensor(self.model.images.centred[torch.arange(len(self.pool))])
        return medoids(x, min(COVERAGE * len(self.classnames), max(1, self.n_taught // 2), len(x)))

    def _to_repeat(self, answers: Mapping[str, Answer]) -> list[int]:
        """Return the row whose answer all else denies most, if any, to ask about it once more."""
        repeated = {one.image_id for one in answers.values() if one.repeat}
        rows, named = [], []
        for name, row in self._rows(answers.values()).items():
            answer = answers.get(name)
            if answer and answer.kind == CLASS and name not in repeated and row in self._place:
                rows.append(row)
                named.append(self.classnames.index(str(answer.classname)))
        predicted = self._predicted([self._place[row] for row in rows]).exp()
        shares = predicted[range(len(rows)), named].tolist()
        certain = (predicted > CERTAIN).any(dim=1).tolist()
        denied = [
            (share, row)
            for share, row, is_certain in zip(shares, rows, certain, strict=True)
            if share < DENIED and is_certain
        ]
        return [min(denied, key=itemgetter(0))[1]] if denied else []

    def _checked(self, answers: Mapping[str, Answer]) -> tuple[int, int, float, float] | None:
        """Return right and checked labels, and the interval for the share of all that are right."""
        checking = [one for one in answers.values() if one.phase == CHECK and one.kind != UNSURE]
        if not checking:
            return None
        row_of = self._rows(checking)
        right, labels = 0, self._labels
        for answer in checking:
            place = self._place.get(row_of.get(answer.image_id, -1))
            if place is not None and answer.kind == CLASS:
                right += self.classnames[int(labels[place])] == answer.classname
        n = len(self.ids)
        taught = len({one.image_id for one in answers.values() if one.phase != CHECK})
        ends = confidence_sequence(right, len(checking), n - taught)
        low, high = ((taught + share * (n - taught)) / n for share in ends)
        return right, len(checking), low, high

    def _rows(self, answers: Iterable[Answer]) -> dict[str, int]:
        """Return the rows of the answered images that are there."""
        names = list(dict.fromkeys(one.image_id for one in answers))
        places = pa.compute.index_in(pa.array(names, pa.string()), self.index["image_id"])
        rows = zip(names, places.to_pylist(), strict=True)
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
