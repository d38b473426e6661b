"""`latteclip teach`: ask about the training images from which the labels learn most.

First come images whose label is in doubt, and the labels learn from every ten answers. Then images
drawn at random from all others check the labels as they were before, so that the interval holds at
every moment. Letters: N training images, P images of the pool that is computed with, C classes.
"""

import shlex
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from latteclip.audit.session import (
    OFFERED,
    Question,
    QuestionSession,
    in_class_order,
    run_session,
)
from latteclip.config.hub_names import slug
from latteclip.core import tables
from latteclip.core.run_options import labels_path, run_command
from latteclip.core.tables import IndexMetadata
from latteclip.core.terminal import counted
from latteclip.labels.answer_files import is_foreign, read_foreign
from latteclip.labels.answers import (
    CHECK,
    TEACH,
    UNSURE,
    Answer,
    Answers,
    Saved,
    teaching_schema,
)
from latteclip.labels.fuse_labels import labels_right
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.labels.guarantees import MIN_ANSWERS, Interval
from latteclip.labels.label_inputs import (
    LabelFiles,
    LabelInputs,
    LabellerTable,
    answered_rows,
)
from latteclip.labels.label_model import LabelModel
from latteclip.labels.votes import Answers as AnsweredRows
from latteclip.labels.votes import Floats

SEED = 0
BATCH = 10  # questions between which the labels learn
MIN_POOL = 1024  # images that are computed with
MAX_POOL = 4096
# Entries of the table of images and classes: with more classes there are fewer images.
POOL_ENTRIES = 2**18
COVERAGE = 2  # images of each class to begin with, where nothing is known of the classes
ITERATIONS = 20  # iterations of k-means


def teach(
    results: str,
    /,
    budget: int = 120,
    offline: str | None = None,
    answers: str | None = None,
    score: bool = False,
    port: int = 0,
    no_browser: bool = False,
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
        score: print the accuracy of the labels by the answers so far
    """
    run_session(
        partial(TeachingSession, results, budget),
        offline=offline,
        answers=answers,
        score=score,
        port=port,
        browser=not no_browser,
    )


class TeachingSession(QuestionSession):
    """The questions of `latteclip teach`, and the labels that learn from their answers."""

    name = "teach"
    images = "training images"

    def __init__(self, folder: str | Path, budget: int) -> None:
        """Begin, or go on with saved answers. Half of the budget check labels."""
        self.folder = Path(folder)
        self.labels = labels_path(self.folder)
        dataset = self.folder.absolute().name
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
        self.n_taught = self.total - min(budget // 2, self.total)
        self._order = np.random.default_rng(SEED).permutation(len(self.ids))
        names = pa.array(list(answers), pa.string())
        rows = pc.index_in(names, self.index["image_id"]).to_pylist()
        self.pool = self._choose_pool(rows)  # [P] ascending rows
        self.inputs, self.has_votes = self._read_inputs()
        self._learn(answers)
        self.questions = []
        self._ask(zip(rows, (a.phase or TEACH for a in answers.values()), strict=True))

    def open_questions(self, answers: Answers, *, offline: bool = False) -> list[Question]:
        """Return the next questions. Offline, all are asked at once, and nothing is learned."""
        answers = dict(answers)
        questions = super().open_questions(answers)
        while len(answers) < self.total and (offline or not questions):
            for question in questions:
                unsure = Answer(question.image_id, UNSURE, phase=question.phase)
                answers[question.image_id] = unsure
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
            return Saved(read_foreign(path, list(self.ids), self.classnames, written))
        return super().read_file(path)

    def status(self, answers: Answers) -> str:
        if n := sum(answer.phase == CHECK for answer in answers.values()):
            return (
                f"Images drawn at random check the labels: {counted(n, 'answer')} so far. "
                f"{MIN_ANSWERS} of them that name a class or none give the share of right labels."
            )
        return (
            "The labels learn from every ten answers. The last half of the questions estimates how "
            "many labels are wrong."
        )

    def result(self) -> dict[str, Any]:
        answers = self.answers()
        sentence = self.status(answers)
        if checked := self._checked(answers):
            sentence = (
                f"Labels, with your answers: {checked.words}, by "
                f"{counted(checked.n, 'answer')} about images drawn at random."
            )
        rerun = (
            "Run the workflow again as before: labels, models and pages follow the answers."
        )
        export = "To export the labels of the training images:"
        folder = shlex.quote(str(self.folder))
        command = f"latteclip labels export {folder} --format csv --output labels.csv"
        steps = [(rerun, run_command(self.folder)), (export, command)]
        return {"sentence": sentence, "tables": [], "steps": steps}

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

    def _read_inputs(self) -> tuple[LabelInputs, bool]:
        """Read what the labels of the pool are made of, and whether images predict the votes."""
        report = read_fusion_report(self.folder / NAME)
        labellers = [
            LabellerTable(one.name, one.kind, str(self.folder / str(one.table)))
            for one in report.labellers
        ]
        encoders = [
            str(self.folder / "image_encoders" / f"{slug({'model': encoder})}.parquet")
            for encoder in report.image_encoders
        ]
        image_ids = self.index["image_id"].take(pa.array(self.pool))
        files = LabelFiles.of(self.folder, examples=bool(report.examples))
        inputs = LabelInputs.read(files, image_ids, self.classnames, labellers, encoders)
        return inputs, any(one.weight > 0 for one in report.labellers)

    def _answered(self, answers: Answers) -> AnsweredRows:
        """Return answers about images of the pool."""
        pool = self.index.take(pa.array(self.pool))
        return answered_rows(answers, pool, self.classnames)

    def _learn(self, answers: Answers) -> None:
        """Learn from the answers of the first phase."""
        taught = {key: answer for key, answer in answers.items() if answer.phase != CHECK}
        self.model: LabelModel = self.inputs.fit(self._answered(taught))
        self.posterior = self.model.probabilities(np.arange(len(self.pool)))  # [P, C]

    def _next_questions(self, answers: Answers, *, learn: bool = True) -> list[Question]:
        teaching = [answer for answer in answers.values() if answer.phase != CHECK]
        is_checking = len(answers) > len(teaching)  # once it has begun, it goes on
        if learn and teaching and not is_checking:
            self._learn(answers)
        wanted = min(BATCH, self.n_taught - len(teaching))
        if wanted > 0 and not is_checking:
            return self._ask((row, TEACH) for row in self._doubtful(answers, wanted))
        n_checked = min(BATCH, self.total - len(answers))
        rest = (row for row in self._order.tolist() if self.ids[row] not in answers)
        return self._ask((row, CHECK) for row in islice(rest, n_checked))

    def _ask(self, asked: Iterable[tuple[int, str]]) -> list[Question]:
        """Return new questions about rows, each with its phase."""
        asked = list(asked)
        start = len(self.questions)
        places = np.searchsorted(self.pool, [row for row, _ in asked])
        predicted = self.model.without_answers(places.astype(np.int64))
        n_offered = min(OFFERED, len(self.classnames))
        likely = np.argsort(-predicted, axis=1, kind="stable")[:, :n_offered].tolist()
        for (row, phase), labels in zip(asked, likely, strict=True):
            checksum = self.index["checksum"][row].as_py()
            question = Question(
                number=len(self.questions),
                image_id=self.ids[row],
                path=self.paths[row],
                content=checksum.hex(),
                options=in_class_order(self.classnames, labels),
                phase=phase,
            )
            self.questions.append(question)
        return self.questions[start:]

    def _doubtful(self, answers: Answers, n: int) -> list[int]:
        """Return rows with the smallest margins, or in their place images that cover the pool."""
        best = -np.sort(-self.posterior, axis=1)[:, :2]
        order = np.argsort(best[:, 0] - best[:, -1], kind="stable").tolist()
        if not self.has_votes:
            order = self._covering() + order
        rows = dict.fromkeys(self.pool[order].tolist())
        doubtful = (row for row in rows if self.ids[row] not in answers)
        return list(islice(doubtful, n))

    def _covering(self) -> list[int]:
        """Return places of images that cover the pool, for half of the questions at most."""
        features = self.inputs.features[0][: len(self.pool)]
        wanted = COVERAGE * len(self.classnames)
        half = max(1, self.n_taught // 2)
        return medoids(features - features.mean(axis=0), min(wanted, half, len(features)))

    def _checked(self, answers: Answers) -> Interval | None:
        """Return the share of right labels of all images, as `fuse_labels` will state it.

        None: too few answers check the labels.
        """
        given = self._answered(answers)
        drawn = given.select(given.drawn)
        if len(drawn.rows) < MIN_ANSWERS:
            return None
        model = self.inputs.fit(given)
        labels = model.held_out_labels_
        right = drawn.shares[np.arange(len(labels)), labels] > 0
        return labels_right(len(self.ids), given, right)


def medoids(x: Floats, k: int) -> list[int]:
    """Return the rows of x [n, D] nearest to k centres of k-means, without repetition."""
    x = x.astype(np.float64)
    centres, _ = kmeans2(x, k, ITERATIONS, minit="++", rng=SEED)
    return list(dict.fromkeys(cdist(x, centres).argmin(axis=0).tolist()))
