"""Ask a person about a random sample of images, and rename classes in answers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from latteclip.audit import sampling
from latteclip.audit import score as scoring
from latteclip.audit.session import (
    OFFERED,
    QuestionSession,
    in_class_order,
    run_session,
)
from latteclip.config.keys import SplitSection
from latteclip.core import tables
from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import counted
from latteclip.evaluate.results import MISSING, Audit
from latteclip.labels.answers import Answer, read_answer_file, rename_in_answers

log = logging.getLogger(__name__)


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
    """Ask about a few images, and report whether tuning helped.

    The images are test images, or else training images that no model learned from. They are drawn
    at random, more often where an answer tells more. No model is trained on the answers. RESULTS/
    audit has them, and the workflow scores models by them.

    Args:
        budget: number of images to ask about (default: 100)
        answers: import the answers that the page exported
        score: print the estimate from the answers so far
    """
    make_session = partial(AuditSession, results, budget)
    run_session(make_session, offline, answers, score, port, browser=not no_browser)


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
        split = sampling.TEST if has_tests else sampling.TRAIN
        self.images = f"{split} images"
        plan_file, self.path = sampling.audit_files(self.folder, split)
        if not plan_file.exists():
            sampling.draw_plan(self.folder, sampling.of_split(index, split), names, split)
        self.plan = sampling.read_plan(plan_file, index, names)
        self.schema = self.plan.schema()
        images = self.schema.images[:budget]
        if not len(images):
            raise UserError(
                f"{plan_file} is about images that are all gone; move the folder "
                f"{plan_file.parent} away to begin a new audit."
            )
        ids = images["image_id"]
        ranked = tables.lookup_column(
            self.folder / "pseudo_labels.parquet",
            "topk_labels",
            ids,
        )
        runs = sampling.runs_in(self.folder)
        predicted = sampling.read_predictions(runs, ids, names, split).values()
        self.questions = []
        for number, image in enumerate(images.to_pylist()):
            votes = [classes[number] for classes in predicted]
            self.ask(image, offered_classes(names, votes, ranked[number].as_py()))
        self.total = len(self.questions)

    def result(self) -> dict[str, Any]:
        return scoring.as_texts(self.folder, self.score(self.saved().asked))

    def score(self, answers: Mapping[str, Answer]) -> Audit:
        """Score every run in the folder by answers, or raise UserError where no run can be."""
        predicted = scoring.predictions_of(self.plan, sampling.runs_in(self.folder))
        return scoring.score(self.folder.absolute().name, self.plan, predicted, answers)


def offered_classes(
    classnames: Sequence[str], predicted: Iterable[int], ranked: Iterable[int]
) -> list[str]:
    """Return the classes that runs predict of an image, and CLIP's next best."""
    offered = {int(label) for label in predicted if label != MISSING}
    for label in ranked:
        if len(offered) < OFFERED:
            offered.add(label)
    return in_class_order(classnames, offered)


def rename_class(results: str, old: str, new: str, /) -> None:
    """Give a class its new name in the answers of `teach` and `audit`.

    Write the new name into classes.txt, or rename the folder, and run the workflow again. If NEW is
    a class already, the two classes become one.

    Args:
        old: the name in the answers
        new: the name that the class has now
    """
    folder = Path(results)
    audits = [sampling.audit_files(folder, split)[1] for split in ("test", "train")]
    files = [path for path in (folder / "answers.json", *audits) if path.exists()]
    replaced = SplitSection().classname_replace
    old, new = (clean_classname(name, replaced) for name in (old, new))
    entries = [one for path in files for one in read_answer_file(path).entries]
    known = {name for one in entries for name in (one.classname, *one.offered) if name}
    if old not in known:
        raise UserError(
            f"No answer of {folder} knows the class {old!r}; {suggestion(old, known)}"
        )
    for path in files:
        n = rename_in_answers(path, old, new)
        log.info("%s: %r is %r now in %s.", path, old, new, counted(n, "answer"))
