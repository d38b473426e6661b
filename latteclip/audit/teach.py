"""`latteclip teach`: ask about the training images from which the labels learn most.

First come images whose label is in doubt, and the labels learn from every ten answers. Then images
drawn at random from all others check the labels as they were before, so that the interval holds at
every moment. Letters: N training images, P images of the pool that is computed with, C classes.
"""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from latteclip.audit.answer_files import is_foreign, read_foreign
from latteclip.audit.session import (
    OFFERED,
    Question,
    QuestionSession,
    in_class_order,
    run_session,
)
from latteclip.core import tables
from latteclip.core.answers import (
    ANSWERS,
    CHECK,
    TEACH,
    UNSURE,
    Answer,
    AnswerFile,
    SavedAnswers,
)
from latteclip.core.errors import UserError
from latteclip.core.run_options import labels_path, run_command
from latteclip.core.tables import IndexMetadata
from latteclip.labels.fuse_labels import labels_right
from latteclip.labels.fusion_report import NAME, read_fusion_report
from latteclip.labels.guarantees import MIN_ANSWERS
from latteclip.labels.label_inputs import (
    LabelInputs,
    answered_rows,
    drawing_order,
)
from latteclip.labels.votes import Answers
from latteclip.report.labellers import in_words

SEED = 0
BATCH = 10  # questions between which the labels learn
POOL = 2048  # images that are computed with
# Images of each class to begin with, where nothing is known of the classes.
COVERAGE = 2
ITERATIONS = 20  # iterations of k-means


def teach(
    results: str,
    /,
    budget: int = 120,
    offline: str | None = None,
    answers: str | None = None,
    drawn: bool = False,
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
        drawn: the labelled images are a random sample of the training images, and check the labels
        score: print the accuracy of the labels by the answers so far
    """
    if drawn and not answers:
        raise UserError("--drawn is about the file of --answers; name it too.")
    session = TeachingSession(results, budget, drawn=drawn)
    run_session(session, offline, answers, score, port, browser=not no_browser)


class TeachingSession(QuestionSession):
    """The questions of `latteclip teach`, and the labels that learn from their answers."""

    name = "teach"
    images = "training images"

    def __init__(
        self, folder: str | Path, budget: int, *, drawn: bool = False
    ) -> None:
        """Begin, or go on with saved answers. Half of the budget check labels.

        Imported labels are of images `drawn` at random, or chosen.
        """
        self.folder = Path(folder)
        self.labels = labels_path(self.folder)  # refuses a folder without labels
        index = self.folder / "images.parquet"
        self.index, self.classnames = tables.read_unlabelled(index, training=True)
        self.ids = tables.Strings(self.index["image_id"])
        self.file = AnswerFile(self.folder / ANSWERS, self.index, self.classnames)
        saved = self.file.read()
        saved.warn(self.file.path, self.folder)
        answers = saved.answers
        imported = sum(answer.is_imported for answer in answers.values())
        self.total = min(budget + imported, len(self.ids))
        n_checked = min(budget // 2, self.total)
        self.n_taught = self.total - n_checked
        self.status = (
            f"The labels learn from every ten answers. The last {n_checked} questions check the "
            "labels, with images drawn at random."
        )
        self._order = drawing_order(self.index)
        self.pool = self._choose_pool(answers)  # [P] ascending rows
        report = read_fusion_report(self.folder / NAME)
        self.has_votes = any(one.weight > 0 for one in report.labellers)
        images = self.index.take(pa.array(self.pool))
        self.inputs = LabelInputs.of_report(report, self.folder, images)
        # The answers that the labels learned from, None before they learned.
        self._taught: dict[str, Answer] | None = None
        self.questions = []
        self._drawn = drawn
        self._imported: str | None = None  # file of chosen images

    def open_questions(
        self, answers: Mapping[str, Answer], *, offline: bool = False
    ) -> list[Question]:
        """Return the next questions, offline all: their answers are not known beforehand."""
        questions = super().open_questions(answers)
        while offline or not questions:
            unknown = {
                one.image_id: Answer(one.image_id, UNSURE, phase=one.phase)
                for one in questions
            }
            added = self._next_questions({**answers, **unknown})
            if not added:
                break
            questions += added
        return questions

    def read_file(self, path: str) -> SavedAnswers:
        """Return the answers that the page exported, or labels from another tool."""
        if is_foreign(path):
            index = self.folder / "images.parquet"
            written = tables.read_metadata(index, IndexMetadata).written_names
            found = [
                *read_foreign(
                    path, list(self.ids), self.classnames, written
                ).values()
            ]
            if self._drawn:
                n = len(self.ids)
                found = [replace(one, phase=CHECK, drawn_from=n) for one in found]
            else:
                self._imported = path
            return self.file.document(found)
        if self._drawn:
            raise UserError(
                f"{path} knows which of its images were drawn; leave out --drawn."
            )
        return super().read_file(path)

    def result(self) -> dict[str, Any]:
        answers = self.answers()
        sentence = (
            f"The share of right labels is not known yet: it takes {MIN_ANSWERS} checks, which "
            "follow the questions that teach."
        )
        given = self._answered(answers)
        if given.drawn.sum() >= MIN_ANSWERS:
            held_out = self.inputs.fit(given).held_out_labels_
            sentence = in_words(labels_right(len(self.ids), given, held_out))
        folder = shlex.quote(str(self.folder))
        drawn = (
            "The imported labels teach and do not check. If their images are a random sample of "
            "all training images, say so, and they check the labels too:",
            f"latteclip teach {folder} --answers {shlex.quote(str(self._imported))} --drawn",
        )
        steps = [drawn] if self._imported else []
        steps += [
            (
                "Run the workflow again as before. Labels, models and pages follow the answers:",
                run_command(self.folder),
            ),
            (
                "To export the labels of the training images:",
                f"latteclip labels export {folder} --format csv --output labels.csv",
            ),
        ]
        return {"sentence": sentence, "lines": [], "steps": steps}

    def _choose_pool(self, answers: Mapping[str, Answer]) -> np.ndarray:
        """Return the rows of answered, random and the least certain images."""
        n = len(self.ids)
        if n <= POOL:
            return np.arange(n)
        ids = self.index["image_id"]
        confidence = tables.lookup_column(self.labels, "fused_confidence", ids)
        answered = pc.index_in(pa.array([*answers], pa.string()), ids)
        drawn = self._order[: max(2 * self.total, POOL // 2)]
        doubtful = np.argsort(confidence.to_numpy(), kind="stable")[: POOL // 2]
        return np.unique(np.concatenate([answered.to_numpy(), drawn, doubtful]))

    def _answered(self, answers: Mapping[str, Answer]) -> Answers:
        """Return answers about images of the pool."""
        return answered_rows(
            answers, self.inputs.images, self.classnames, len(self.ids)
        )

    def _next_questions(self, answers: Mapping[str, Answer]) -> list[Question]:
        """Ask about doubtful images, then about drawn ones. Once these have begun, they go on."""
        taught = {
            key: answer
            for key, answer in answers.items()
            if answer.phase != CHECK and answer.kind != UNSURE
        }
        if taught != self._taught:
            self._taught = taught
            model = self.inputs.fit(self._answered(taught))
            self.posterior = model.probabilities(slice(len(self.pool)))  # [P, C]
        rows, phase, n = self._order.tolist(), CHECK, self.total
        has_checks = any(answer.phase == CHECK for answer in answers.values())
        if not has_checks and len(answers) < self.n_taught:
            rows, phase, n = self._doubtful(), TEACH, self.n_taught
        unanswered = (row for row in rows if self.ids[row] not in answers)
        wanted = min(BATCH, max(0, n - len(answers)))
        chosen = list(islice(unanswered, wanted))
        places = np.searchsorted(self.pool, chosen)
        likely = np.argsort(-self.posterior[places], axis=1, kind="stable")[
            :, :OFFERED
        ]
        images = self.index.take(pa.array(chosen, pa.int64())).to_pylist()
        start = len(self.questions)
        for image, labels in zip(images, likely.tolist(), strict=True):
            self.ask(image, in_class_order(self.classnames, labels), phase)
        return self.questions[start:]

    def _doubtful(self) -> list[int]:
        """Return rows by their margins, after images that cover the pool where nobody votes.

        Class texts alone may be surely wrong, and then small margins find no mistakes.
        """
        best = -np.sort(-self.posterior, axis=1)[:, :2]
        order = np.argsort(best[:, 0] - best[:, -1], kind="stable").tolist()
        if not self.has_votes:
            x = self.inputs.features[0][: len(self.pool)]
            x = (x - x.mean(axis=0)).astype(np.float64)
            wanted = COVERAGE * len(self.classnames)
            k = min(wanted, max(1, self.n_taught // 2), len(x))
            centres, _ = kmeans2(x, k, ITERATIONS, minit="++", rng=SEED)
            order = cdist(x, centres).argmin(axis=0).tolist() + order
        rows: list[int] = self.pool[list(dict.fromkeys(order))].tolist()
        return rows
