"""Asking for the scores of classes, and what becomes of each image.

Letters: R images of a shard.
"""

import dataclasses

import numpy as np

from latteclip.captions.answers import AnswerStore
from latteclip.captions.ask import Asking, Pool
from latteclip.captions.class_questions import NOT_ASKED, ClassQuestions, RowScores
from latteclip.captions.engines.base import Captioner, CaptionerSettings
from latteclip.captions.request import Choices
from latteclip.captions.scorers import start as scorers
from latteclip.captions.scores import read_scores


class ScoreAsking(Asking):
    """Asks about the images that are to be asked about, once in each order of the options."""

    unit = "scores"

    def __init__(
        self,
        classes: ClassQuestions,
        settings: CaptionerSettings,
        store: AnswerStore,
        threads: int,
    ) -> None:
        # No description is written, so its length decides nothing.
        identity = dataclasses.replace(settings.identity(classes.images.layout), max_new_tokens=0)
        super().__init__(classes.images, settings, identity, store, threads)
        self.classes = classes

    def question(self, row: int, turn: int) -> tuple[str, Choices | None]:
        return self.classes.ask(row, turn)

    def start(self) -> Captioner:
        return scorers.start(self.settings, self.threads)

    def take_turns(self, pool: Pool) -> None:
        rows = np.flatnonzero(self.classes.is_asked).tolist()
        for turn in range(self.classes.settings.turns):
            self.take_turn(turn, rows, pool)

    def outcome(self, row: int) -> RowScores:
        """What became of an image: all turns count, or it has an error."""
        if not self.classes.is_asked[row]:
            return NOT_ASKED
        digests = [self.digest(row, turn) for turn in range(self.classes.settings.turns)]
        joined = " ".join(digests)
        kept = [answer for each in digests if (answer := self.store.get(each)) is not None]
        if len(kept) < len(digests):
            errors = (self.errors[each] for each in digests if each in self.errors)
            return RowScores(error=next(errors, "not answered"), digest=joined)
        return dataclasses.replace(
            self.classes.understand(row, [read_scores(each.answer.text) for each in kept]),
            digest=joined,
            engine=kept[0].engine,
            date=max(each.date for each in kept),
        )
