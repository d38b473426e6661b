"""Ask a person about a random sample of images, and report whether tuning helped."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latteclip.audit import sampling
from latteclip.audit import score as scoring
from latteclip.audit.server import run_session
from latteclip.audit.session import OFFERED, Question, QuestionSession, in_class_order
from latteclip.core.hashing import digest
from latteclip.evaluate.results import Audit
from latteclip.evaluate.train_predictions import MISSING
from latteclip.labels.answers import Answers


def audit(
    results: str,
    /,
    split: Literal["test", "train"] | None = None,
    budget: int = 100,
    offline: str | None = None,
    answers: str | None = None,
    score: bool = False,
    port: int = 0,
    no_browser: bool = False,
    json_output: bool = False,
) -> None:
    """Ask about a few images, and report whether tuning helped.

    The page is on this machine alone, and its address is a secret. Images are drawn at random,
    more often where an answer tells more. No model is trained on the answers. They are in
    RESULTS/audit, and the workflow scores models by them.

    Args:
        split: the split of the images (default: test if it has images); train: the training images
            that no model learned from
        budget: number of images to ask about (default: 100)
        answers: import the answers that the page exported
        score: print the estimate from the answers so far
    """
    run_session(
        partial(AuditSession, results, split, budget),
        offline=offline,
        answers=answers,
        score=score,
        json_output=json_output,
        port=port,
        browser=not no_browser,
    )


class AuditSession(QuestionSession):
    """An audit of a dataset's results: a plan, its first questions, and the answers to them."""

    name = "audit"

    def __init__(self, folder: str | Path, split: str | None, budget: int) -> None:
        """Begin or continue an audit of a split (see `read_population`) with `budget` questions."""
        self.folder = Path(folder)
        self.population = sampling.read_population(self.folder, split)
        self.images = f"{self.population.split} images"
        plan_file, self.path = sampling.audit_files(self.folder, self.population.split)
        self.plan = sampling.read_or_draw(plan_file, self.population)
        self.schema = self.plan.schema(self.population.dataset)
        ids = self.population.image_ids
        paths = self.population.paths
        checksums = self.population.checksums
        self.questions = [
            Question(
                number=number,
                image_id=ids[row],
                path=paths[row],
                content=checksums[row].hex(),
                options=offered_classes(self.population, row),
            )
            for number, row in enumerate(self.plan.order[:budget].tolist())
        ]
        self.total = len(self.questions)

    def result(self, answers: Answers) -> dict[str, Any]:
        return scoring.as_texts(self.folder, self.score({**self.saved().asked, **answers}))

    def score(self, answers: Answers) -> Audit:
        """Score every run in the folder by answers, or raise UserError where these are too few."""
        runs = [run for run in sampling.runs_in(self.folder) if run.predictions]
        dataset = self.population.dataset
        predictions = scoring.read_predictions(dataset, self.plan, runs)
        return scoring.score(dataset, self.plan, predictions, answers)


def offered_classes(population: sampling.Population, row: int) -> list[str]:
    """Return the classes that runs predict of an image, then CLIP's next best, then random ones."""
    classnames = population.classnames
    seed = int(digest(population.image_ids[row])[:16], 16)
    rng = np.random.default_rng(seed)
    predictions = population.predictions[row]
    predicted = set(predictions[predictions != MISSING].tolist())
    ranked = population.ranked[row].tolist()
    random = rng.permutation(len(classnames)).tolist()
    likely = [label for label in dict.fromkeys(ranked + random) if label not in predicted]
    n_further = max(0, OFFERED - len(predicted))
    return in_class_order(classnames, [*predicted, *likely[:n_further]])
