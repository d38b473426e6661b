"""`latteclip teach`: ask about the training images from which the labels learn most.

First come images whose label is in doubt, and the labels learn from every ten answers. Then images
drawn at random from all others check the labels as they were before, so that the interval holds at
every moment. Letters: N training images, P images of the pool that is computed with, C classes.
"""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from latteclip.audit.score import export_step
from latteclip.audit.server import run_session
from latteclip.audit.session import OFFERED, Question, QuestionSession, in_class_order
from latteclip.config.hub_names import slug
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.metadata import IndexMetadata
from latteclip.core.run_options import run_command
from latteclip.labels.answer_files import is_foreign, read_foreign
from latteclip.labels.answers import (
    CHECK,
    CLASS,
    TEACH,
    UNSURE,
    Answer,
    Answers,
    Saved,
    labelled_rows,
    teaching_schema,
)
from latteclip.labels.examples import Examples, read_examples
from latteclip.labels.fusion import ROUNDS, LabelModel
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.labels.guarantees import confidence_sequence
from latteclip.labels.predictors import read_predictors
from latteclip.labels.voter_model import start_model, test_voters
from latteclip.labels.voters.base import FusionSettings, VoterTable

SEED = 0
BATCH = 10  # questions between which the labels learn
STEPS = 2  # rounds of the fusion that it takes; with many classes one
MIN_POOL = 1024  # images that are computed with
MAX_POOL = 4096
# Entries of the table of images and classes: with more classes there are fewer images.
POOL_ENTRIES = 2**20
LIGHT_ENTRIES = 2**19  # above which little is learned between answers: no confusion matrix
COVERAGE = 2  # images of each class to begin with, where nothing is known of the classes
ITERATIONS = 20  # iterations of k-means
DOUBT = 0.5  # a label below this probability is in doubt
# An answer this unlikely, against a class this likely, is asked again.
DENIED = 0.02
CERTAIN = 0.9
MAX_TEXTS = 256  # captions encoded at once


def teach(
    results: str,
    /,
    budget: int = 120,
    offline: str | None = None,
    answers: str | None = None,
    score: bool = False,
    port: int = 0,
    no_browser: bool = False,
    json_output: bool = False,
) -> None:
    """Ask about the training images from which the labels learn most.

    The first half of the images are those whose labels are in doubt, and the labels learn from
    every ten answers. The other half are drawn at random and check the labels. Answers are in
    RESULTS/answers.json. Labels, recommended model and pages follow them when you run the workflow
    again.

    Args:
        budget: number of images to ask about (default: 120)
        answers: import the answers that the page exported, or labels of some images: CSV, Parquet
            or JSON Lines with the columns image and class, or an export of Label Studio
        score: print how right the labels are by the answers so far
    """
    run_session(
        partial(TeachingSession, results, budget),
        offline=offline,
        answers=answers,
        score=score,
        json_output=json_output,
        port=port,
        browser=not no_browser,
    )


class TeachingSession(QuestionSession):
    """The questions of `latteclip teach`, and the labels that learn from their answers."""

    name = "teach"
    images = "training images"

    def __init__(
        self, folder: str | Path, budget: int, checking: int | None = None
    ) -> None:
        """Begin, or go on with saved answers. `checking` of the budget, or half, check labels."""
        self.folder = Path(folder)
        self.labels = Path(folder) / "fused_labels.parquet"
        dataset = self.folder.absolute().name
        if not self.labels.is_file():
            raise UserError(
                f"{self.labels} does not exist: run the workflow first, "
                f"{run_command(self.folder, 'labels')}."
            )
        index = self.folder / "images.parquet"
        self.index, self.classnames = tables.read_unlabelled(index, training=True)
        self.ids = tables.Strings(self.index["image_id"])
        self.paths = tables.Strings(self.index["path"])
        self.path = self.folder / "answers.json"
        self.schema = teaching_schema(dataset, self.classnames, self.index)
        saved = self.saved()
        saved.warn(self.path, self.folder)
        answers = saved.answers
        imported = sum(answer.phase is None for answer in answers.values())
        self.total = min(budget + imported, len(self.ids))
        checking = budget // 2 if checking is None else checking
        self.n_taught = self.total - min(checking, self.total)
        self._order = np.random.default_rng(SEED).permutation(len(self.ids))
        row_of = self._rows(answers.values())
        self.pool = self._choose_pool([*row_of.values()])  # [P] ascending rows
        self._place = {int(row): place for place, row in enumerate(self.pool)}
        self.examples: Examples | None = None  # rows after the pool
        self._is_light = len(self.pool) * len(self.classnames) > LIGHT_ENTRIES
        self.model = self._read_model()
        self._learn({})
        self._start = self._labels
        self.questions = []
        self._ask(
            (row_of[answer.image_id], answer.phase or TEACH, answer.repeat)
            for answer in answers.values()
        )
        if answers:
            self._learn(answers)

    def open_questions(self, answers: Answers, *, offline: bool = False) -> list[Question]:
        """Return the next questions. Offline, all are asked at once, and nothing is learned."""
        answers = dict(answers)
        questions = super().open_questions(answers)
        while len(answers) < self.total and (offline or not questions):
            for question in questions:
                unsure = Answer(question.image_id, UNSURE, phase=question.phase)
                answers[question.key] = unsure
            added = self._next_questions(answers, learn=not offline)
            if not added:
                break
            questions += added
        return questions

    def read_file(self, path: str) -> Saved:
        """Return the answers that the page exported, or labels from another tool."""
        if is_foreign(path):
            index = self.folder / "images.parquet"
            written = tables.read_metadata(index, IndexMetadata).written_names
            ids = list(self.ids)
            paths = list(self.paths)
            return Saved(read_foreign(path, ids, paths, self.classnames, written))
        return super().read_file(path)

    def status(self, answers: Answers) -> str:
        if checked := self._checked(answers):
            right, n, low, high = checked
            return (
                f"Images drawn at random now check the labels. By {n} of them, {100 * low:.0f} to "
                f"{100 * high:.0f} % of all labels are right ({right} of {n}). This interval holds "
                "at every moment."
            )
        score = self.score(answers)
        return (
            f"{score['changed']:,} labels changed so far. {score['in_doubt']:,} of all are not "
            "sure, and more are wrong: the last half of the questions tells how many."
        )

    def score(self, answers: Answers) -> dict[str, Any]:
        """Return numbers of answers and labels, and the interval of right labels, if there is one.

        `changed` and `in_doubt` count images of the pool.
        """
        right, checked, low, high = self._checked(answers) or (None, 0, None, None)
        return {
            "answers": len(answers),
            "images": len(self.ids),
            "changed": int((self._labels != self._start).sum()),
            "in_doubt": int((self.posterior.amax(dim=1) < DOUBT).sum()),
            "checked": checked,
            "right": right,
            "low": low,
            "high": high,
        }

    def result(self, answers: Answers) -> dict[str, Any]:
        text = (
            "Run the workflow again as before: labels, models and pages follow the answers."
        )
        again = text, run_command(self.folder)
        steps = [again, export_step(self.folder)]
        return {"sentence": self.status(answers), "tables": [], "steps": steps}

    def _choose_pool(self, answered: list[int]) -> np.ndarray:
        """Return the rows of answered, random and the least certain images."""
        n = len(self.ids)
        size = max(MIN_POOL, min(MAX_POOL, POOL_ENTRIES // len(self.classnames)))
        if n <= size:
            return np.arange(n)
        confidence = tables.lookup_column(
            self.labels,
            tables.FUSED_LABELS,
            key="image_id",
            column="fused_confidence",
            ids=self.index["image_id"],
        )
        half = size // 2
        drawn = self._order[: max(2 * self.total, half)]
        doubtful = np.argpartition(confidence.to_numpy(), half)[:half]
        rows = [np.array(answered, np.int64), drawn, doubtful]
        return np.unique(np.concatenate(rows))

    def _read_model(self) -> LabelModel:
        """Read what the fused labels are made of for the pool, and learn without answers."""
        report = read_fusion_report(self.folder / NAME)
        settings = FusionSettings(
            clip=ClipSection(model=report.model, pretrained=report.pretrained),
            inference=InferenceSection(batch_size=MAX_TEXTS),
        )
        voters = []
        for voter in report.voters:
            if voter.name not in report.uncounted:
                table = str(self.folder / voter.table)
                voters.append(VoterTable(voter.name, voter.kind, voter.module, table))
        encoders = []
        for encoder in report.image_encoders:
            name = slug({"model": encoder.model})
            encoders.append(str(self.folder / "image_encoders" / f"{name}.parquet"))
        known = read_predictors(
            self.index["image_id"].take(pa.array(self.pool)),
            self.classnames,
            settings,
            str(self.folder / "pseudo_labels.parquet"),
            str(self.folder / "class_embeddings.safetensors"),
            voters,
            image_encoders_paths=encoders,
            device="auto",
            threads=torch.get_num_threads(),
        )
        votes = {name: ballot.votes for name, ballot in known.ballots.items()}
        images = known.images
        others = list(known.others)
        if report.examples:
            models = [report.model, *(encoder.model for encoder in report.image_encoders)]
            path = str(self.folder / "examples.parquet")
            self.examples = read_examples(path, self.classnames, models)
            images = self.examples.add_features(0, images)
            others = [
                self.examples.add_features(number, encoder)
                for number, encoder in enumerate(others, start=1)
            ]
            votes = {name: self.examples.add_votes(each) for name, each in votes.items()}
        tests = test_voters(images, votes, others)
        model, _ = start_model(images, votes, others, tests)
        model.learn(STEPS if self._is_light else ROUNDS)
        return model

    @property
    def _labels(self) -> torch.Tensor:
        """The likeliest classes [P]."""
        return self.posterior.argmax(dim=1)

    def _learn(self, answers: Answers) -> None:
        """Learn from the answers of the first phase."""
        taught = {key: answer for key, answer in answers.items() if answer.phase != CHECK}
        pool = self.index.take(pa.array(self.pool))
        labelled = labelled_rows(taught, pool, self.classnames)
        if self.examples is not None:
            labelled = self.examples.add_answers(labelled, len(self.pool))
        if len(labelled.rows):
            self.model = self.model.answered(labelled)
            n_steps = 1 if self._is_light else STEPS
            for _ in range(n_steps):
                self.model.step(light=self._is_light)
        every = torch.arange(len(self.pool))
        self.posterior = self.model.log_posterior(every).exp()  # [P, C]

    def _next_questions(self, answers: Answers, *, learn: bool = True) -> list[Question]:
        teaching = [answer for answer in answers.values() if answer.phase != CHECK]
        is_checking = len(answers) > len(teaching)  # once it has begun, it goes on
        if learn and teaching and not is_checking:
            self._learn(answers)
        wanted = min(BATCH, self.n_taught - len(teaching))
        if wanted > 0 and not is_checking:
            again = self._to_repeat(answers) if learn else []
            rows = self._doubtful(answers, wanted - len(again))
            asked_rows = [(row, TEACH, False) for row in rows]
            asked_rows += [(row, TEACH, True) for row in again]
            return self._ask(asked_rows)
        asked = {answer.image_id for answer in answers.values()}
        n_checked = min(BATCH, self.total - len(answers))
        rest = (row for row in self._order.tolist() if self.ids[row] not in asked)
        return self._ask((row, CHECK, False) for row in islice(rest, n_checked))

    def _ask(self, asked: Iterable[tuple[int, str, bool]]) -> list[Question]:
        """Return new questions about rows: each with its phase, and whether it is a repetition."""
        asked = list(asked)
        start = len(self.questions)
        predicted = self._predicted(row for row, _, _ in asked)
        n_offered = min(OFFERED, len(self.classnames))
        likely = predicted.topk(n_offered).indices.tolist()
        for (row, phase, repeat), labels in zip(asked, likely, strict=True):
            checksum = self.index["checksum"][row].as_py()
            question = Question(
                number=len(self.questions),
                image_id=self.ids[row],
                path=self.paths[row],
                content=checksum.hex(),
                options=in_class_order(self.classnames, labels),
                phase=phase,
                repeat=repeat,
            )
            self.questions.append(question)
        return self.questions[start:]

    def _predicted(self, rows: Iterable[int]) -> torch.Tensor:
        """Return the log-probabilities [n, C] of images of the pool, answers aside."""
        places = torch.tensor([self._place[row] for row in rows], dtype=torch.long)
        return self.model.predicted_log_posterior(places)

    def _doubtful(self, answers: Answers, n: int) -> list[int]:
        """Return rows with the smallest margins, or in their place images that cover the pool."""
        n_best = min(2, self.posterior.shape[1])
        best = self.posterior.topk(n_best, dim=1).values
        margins = best[:, 0] - best[:, -1]
        order = margins.argsort().tolist()
        if not self.model.parameters.test.significant:
            order = self._covering() + order
        asked = {answer.image_id for answer in answers.values()}
        rows = dict.fromkeys(self.pool[order].tolist())
        doubtful = (row for row in rows if self.ids[row] not in asked)
        return list(islice(doubtful, n))

    def _covering(self) -> list[int]:
        """Return places of images that cover the pool, for half of the questions at most."""
        every = torch.arange(len(self.pool))
        features = torch.as_tensor(self.model.images.centred[every])
        wanted = COVERAGE * len(self.classnames)
        half = max(1, self.n_taught // 2)
        return medoids(features, min(wanted, half, len(features)))

    def _to_repeat(self, answers: Answers) -> list[int]:
        """Return the row whose answer all else denies most, if any, to ask about it once more."""
        repeated = {answer.image_id for answer in answers.values() if answer.repeat}
        label_of_row: dict[int, int] = {}
        for image_id, row in self._rows(answers.values()).items():
            answer = answers.get(image_id)
            if answer is None or answer.kind != CLASS:
                continue
            if image_id not in repeated and row in self._place:
                label_of_row[row] = self.classnames.index(str(answer.classname))
        rows = list(label_of_row)
        labels = list(label_of_row.values())
        predicted = self._predicted(rows).exp()
        shares = predicted[range(len(rows)), labels]
        is_certain = (predicted > CERTAIN).any(dim=1)
        denied = is_certain & (shares < DENIED)
        if not denied.any():
            return []
        shares[~denied] = 1.0
        _, row = min(zip(shares.tolist(), rows, strict=True))
        return [row]

    def _checked(self, answers: Answers) -> tuple[int, int, float, float] | None:
        """Return right and checked labels, and the interval for the share of all that are right."""
        checking = [
            answer
            for answer in answers.values()
            if answer.phase == CHECK and answer.kind != UNSURE
        ]
        if not checking:
            return None
        labels = self._labels.tolist()
        label_of = {
            name: self.classnames[labels[self._place[row]]]
            for name, row in self._rows(checking).items()
            if row in self._place
        }
        right = sum(
            label_of.get(answer.image_id, "") == answer.classname for answer in checking
        )
        n = len(self.ids)
        taught = {answer.image_id for answer in answers.values() if answer.phase != CHECK}
        n_taught = len(taught)
        n_others = n - n_taught
        ends = confidence_sequence(right, len(checking), n_others)
        low, high = ((n_taught + share * n_others) / n for share in ends)
        return right, len(checking), low, high

    def _rows(self, answers: Iterable[Answer]) -> dict[str, int]:
        """Return the rows of the answered images that are there."""
        names = list(dict.fromkeys(answer.image_id for answer in answers))
        places = pa.compute.index_in(pa.array(names, pa.string()), self.index["image_id"])
        rows = zip(names, places.to_pylist(), strict=True)
        return {name: row for name, row in rows if row is not None}


def medoids(x: torch.Tensor, k: int) -> list[int]:
    """Return the rows of x [n, D] nearest to k centres of k-means, without repetition."""
    generator = torch.Generator().manual_seed(SEED)
    first = int(torch.randint(len(x), (1,), generator=generator))
    chosen = [first]
    distance = _squared_distances(x, x[first])
    while len(chosen) < k and distance.sum() > 0:
        row = int(torch.multinomial(distance, 1, generator=generator))
        chosen.append(row)
        distance = torch.minimum(distance, _squared_distances(x, x[row]))
    centres = x[chosen].clone()
    for _ in range(ITERATIONS):
        nearest = torch.cdist(x, centres).argmin(dim=1)
        for number in range(len(centres)):
            members = x[nearest == number]
            if len(members):
                centres[number] = members.mean(dim=0)
    nearest_rows = torch.cdist(x, centres).argmin(dim=0)
    return list(dict.fromkeys(nearest_rows.tolist()))


def _squared_distances(x: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Return the squared distances [n] of x [n, D] from a centre [D]."""
    return (x - centre).square().sum(dim=1)
