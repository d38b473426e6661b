"""Asking for the scores of classes, and what becomes of each image.

Letters: R images of a shard.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from latteclip.captions.answers import AnswerStore, Tokens
from latteclip.captions.class_questions import NOT_ASKED, ClassQuestions, RowScores
from latteclip.captions.engines.base import Captioner, CaptionerSettings
from latteclip.captions.requests import Choices
from latteclip.captions.runner import Asking, Pool
from latteclip.captions.scorers import start as scorers
from latteclip.captions.scores import read_scores


class ScoreAsking(Asking):
    """Asks about the images that are to be asked about."""

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
        return self.classes.ask(row)

    def start(self) -> Captioner:
        return scorers.start(self.settings, self.threads)

    @property
    def rows(self) -> Sequence[int]:
        rows: list[int] = np.flatnonzero(self.classes.is_asked).tolist()
        return rows

    def take_turns(self, pool: Pool) -> None:
        """Ask once; all orders of the options are one request, and share the image."""
        self.take_turn(1, self.rows, pool)

    def outcome(self, row: int) -> RowScores:
        """What became of an image."""
        if not self.classes.is_asked[row]:
            return NOT_ASKED
        request_digest = self.digest(row, 1)
        kept = self.store.get(request_digest)
        if kept is None:
            error = self.errors.get(request_digest, "not answered")
            return RowScores(error=error, digest=request_digest)
        return dataclasses.replace(
            self.classes.understand(row, read_scores(kept.answer.text)),
            digest=request_digest,
            engine=kept.engine,
            date=kept.date,
            tokens=Tokens.of(kept.answer),
        )
