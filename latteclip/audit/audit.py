"""Ask a person about a random sample of images, and rename classes in answers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.audit import score as scoring
from latteclip.audit.score import RATES, TEST, TRAIN
from latteclip.audit.session import (
    OFFERED,
    QuestionSession,
    in_class_order,
    run_session,
)
from latteclip.config.keys import SplitSection
from latteclip.core import tables
from latteclip.core.answers import (
    ANSWERS,
    CHECK,
    Answer,
    AnswerFile,
    read_answer_file,
    rename_in_answers,
)
from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError, suggestion
from latteclip.core.run_options import run_command
from latteclip.core.terminal import counted
from latteclip.evaluate.results import MISSING, Audit, RunFiles, predicted_classes
from latteclip.labels.votes import Ints

log = logging.getLogger(__name__)
BASELINES = ("zero_shot", "zero_shot_adapted")  # which need no model of their own
SEED = 0


def audit(
    results: str,
    /,
    budget: int = 100,
    offline: str | None = None,
    answers: str | None = None,
    score: bool = False,
    port: int = 0,
    no_browser: bool = False,
) -> None:
    """Ask about test images, and show which model is best.

    Without a test split, the images are training images that no model learned from. They are drawn
    at random, more often where an answer tells more. No model is trained on the answers, which are
    in RESULTS/audit. The workflow scores models by them.

    Args:
        budget: number of images to ask about (default: 100)
        answers: import the answers that the page exported
        score: print the estimate from the answers so far
    """
    session = AuditSession(results, budget)
    run_session(session, offline, answers, score, port, browser=not no_browser)


class AuditSession(QuestionSession):
    """An audit of a dataset's results: a plan, its first questions, and the answers to them."""

    name = "audit"

    def __init__(self, folder: str | Path, budget: int) -> None:
        """Begin or continue an audit of `budget` images, or raise UserError."""
        self.folder = Path(folder)
        index, names = tables.read_unlabelled(
            self.folder / "images.parquet", training=False
        )
        has_tests = pc.any(pc.equal(index["split"], "test")).as_py()
        split = TEST if has_tests else TRAIN
        self.images = "test images" if has_tests else "training images"
        plan_file = plan_of(self.folder, split)
        if not plan_file.exists():
            draw_plan(self.folder, scoring.of_split(index, split), names, split)
        self.plan = scoring.read_plan(plan_file, index, names)
        self.file = self.plan.file
        images = self.file.images[:budget]
        if not len(images):
            raise UserError(
                f"{plan_file} is about images that are all gone; move the folder "
                f"{plan_file.parent} away to begin a new audit."
            )
        ids = images["image_id"]
        ranked = tables.lookup_column(
            self.folder / "pseudo_labels.parquet", "topk_labels", ids
        )
        self.predicted = scoring.predictions_of(self.plan, runs_in(self.folder))
        self.questions = []
        for number, image in enumerate(images.to_pylist()):
            votes = [classes[number] for classes in self.predicted.values()]
            self.ask(image, offered_classes(names, votes, ranked[number].as_py()))
        self.total = len(self.questions)

    def result(self) -> dict[str, Any]:
        return scoring.as_texts(self.folder, self.score(self.file.read().asked))

    def score(self, answers: Mapping[str, Answer]) -> Audit:
        """Score every run by answers."""
        name = self.folder.absolute().name
        return scoring.score(name, self.plan, self.predicted, answers)


def offered_classes(
    classnames: Sequence[str], predicted: Iterable[int], ranked: Iterable[int]
) -> list[str]:
    """Return the classes that runs predict of an image, and CLIP's next best."""
    offered = {int(label) for label in predicted if label != MISSING}
    for label in ranked:
        if len(offered) < OFFERED:
            offered.add(label)
    return in_class_order(classnames, offered)


def plan_of(folder: Path, split: str) -> Path:
    """Return the place of a split's plan in a dataset's results. Answers to it lie beside it."""
    return folder / "audit" / split / "plan.parquet"


def runs_in(folder: Path) -> list[RunFiles]:
    """Return the evaluated runs of a dataset's results: baselines first, then by name."""
    names = ("metrics.json", "train_predictions.parquet", "predictions.parquet")
    runs = []
    for metrics in folder.glob("*/seed*/metrics.json"):
        place = metrics.parent
        seed = place.name.removeprefix("seed")
        if not seed.isdecimal():  # a copy beside a run, such as seed0_backup
            continue
        files = [str(place / name) for name in names]
        runs.append(RunFiles(place.parent.name, int(seed), *files))
    return sorted(runs, key=lambda run: (run.method not in BASELINES, run.run))


def draw_plan(
    folder: Path, index: pa.Table, classnames: Sequence[str], split: str
) -> None:
    """Draw the order of the images of an index that models can be compared by, or raise UserError.

    All models predict them, none learned from them, and `latteclip teach` did not ask about them to
    teach.
    """
    image_ids = index["image_id"]
    runs = [
        run
        for run in runs_in(folder)
        if scoring.predicts_most(
            run.run, predicted_classes(run.predictions, image_ids)
        )
    ]
    predicted = scoring.read_predictions(runs, image_ids, classnames, split)
    saved = AnswerFile(folder / ANSWERS, index, classnames).read()
    taught = [
        answer.image_id for answer in saved.asked.values() if answer.phase != CHECK
    ]
    known = pc.invert(
        pc.is_in(image_ids, pa.array(taught, pa.string()))
    ).to_numpy()
    known = np.all(
        [one != MISSING for one in predicted.values()] + [known], axis=0
    )
    if not (predicted and known.any()):
        raise UserError(
            f"{folder} has no {split} images that all models predict and none learned from. Run "
            f"the workflow first: {run_command(folder)}. Trainings leave out images where "
            "selection.share is above 0 and there are at least 100 to leave out."
        )
    index = index.filter(pa.array(known))
    classes = [one[known] for one in predicted.values()]
    strata = np.any([one != classes[0] for one in classes], axis=0).astype(np.int_)
    order = sampling_order(strata, np.random.default_rng(SEED))
    drawn = index.take(pa.array(order))
    columns = {
        "image_id": drawn["image_id"],
        "checksum": drawn["checksum"],
        "stratum": strata[order],
    }
    tables.write(plan_of(folder, split), columns, tables.PLAN)


def sampling_order(strata: Ints, rng: np.random.Generator) -> Ints:
    """Return the rows of N images in the order in which they are asked about.

    The images of a stratum are in random order, and strata take turns at their rates. So the
    first n images are a simple random sample of each stratum, whatever n is.
    """
    due = np.empty(len(strata))
    for h in np.unique(strata):
        rows = np.flatnonzero(strata == h)
        n = len(rows)
        due[rows] = (rng.permutation(n) + rng.random()) / (n * RATES[h])
    return np.argsort(due, kind="stable")


def rename_class(results: str, old: str, new: str, /) -> None:
    """Give a class its new name in the answers of `teach` and `audit`.

    Write the new name into classes.txt, or rename the folder, and run the workflow again. If NEW is
    a class already, the two classes become one.

    Args:
        old: the name in the answers
        new: the name that the class has now
    """
    folder = Path(results)
    files = [*folder.glob(ANSWERS), *sorted(folder.glob(f"audit/*/{ANSWERS}"))]
    if not files:
        places = (f"*/{ANSWERS}", f"*/audit/*/{ANSWERS}")
        found = (path for place in places for path in Path("results").glob(place))
        others = {path.parts[1] for path in found}
        raise UserError(
            f"{folder} has no answers; give results/<dataset>. Datasets with answers here "
            f"are: {', '.join(sorted(others)) or 'none'}."
        )
    replaced = SplitSection().classname_replace
    old, new = (clean_classname(name, replaced) for name in (old, new))
    entries = [one for path in files for one in read_answer_file(path).entries]
    known = {
        name for one in entries for name in (one.classname, *one.offered) if name
    }
    if old not in known:
        raise UserError(
            f"No answer of {folder} knows the class {old!r}; {suggestion(old, known)}"
        )
    for path in files:
        n = rename_in_answers(path, old, new)
        log.info("%s: %r is %r now in %s.", path, old, new, counted(n, "answer"))
