"""Asking for captions: a second time where the first answer is empty or cut.

Letters: R rows of a table (images or groups).
"""

import logging
from collections.abc import Sequence

from latteclip.captions import kept as keeping
from latteclip.captions.answers import AnswerStore, KeptAnswer, RowOutcome, Tokens
from latteclip.captions.engines import start as engines
from latteclip.captions.engines.base import Captioner, CaptionerSettings
from latteclip.captions.requests import Choices, Questions, prompt_of
from latteclip.captions.runner import Asking, Pool
from latteclip.captions.text import clean

log = logging.getLogger(__name__)


class CaptionAsking(Asking):
    """Asks for captions, and says what became of each row."""

    unit = "captions"

    def __init__(
        self, questions: Questions, settings: CaptionerSettings, store: AnswerStore, threads: int
    ) -> None:
        super().__init__(questions, settings, settings.identity(questions.layout), store, threads)
        self.most_characters = keeping.most_characters(settings.max_new_tokens)

    def question(self, row: int, turn: int) -> tuple[str, Choices | None]:
        return prompt_of(self.questions.prompts(row), turn), None

    def start(self) -> Captioner:
        return engines.start(self.settings, self.threads, self.questions.n_pictures)

    @property
    def rows(self) -> Sequence[int]:
        return range(len(self.questions))

    def take_turns(self, pool: Pool) -> None:
        """Ask once about every row, and again about those with an empty or cut answer."""
        self.take_turn(1, self.rows, pool)
        again = [row for row in self.rows if self._wants_another(row)]
        if again:
            log.info("%d answers are empty or cut.", len(again))
            self.take_turn(2, again, pool)

    def _wants_another(self, row: int) -> bool:
        first = self.store.get(self.digest(row, 1))
        return first is not None and not _is_good(first)

    def outcome(self, row: int) -> RowOutcome:
        """What became of a row: its first good answer, else one that has a text."""
        request_digest = self.digest(row, 1)
        first = self.store.get(request_digest)
        if first is None:
            error = self.errors.get(request_digest, "not answered")
            return RowOutcome("", "error", None, 1, error, request_digest, "", None)
        second = None if _is_good(first) else self.store.get(self.digest(row, 2))
        if second is None:
            return _outcome(first, Tokens.of(first.answer), 1, request_digest)
        best = second if _is_good(second) or not clean(first.answer.text) else first
        return _outcome(best, Tokens.of(first.answer, second.answer), 2, request_digest)


def _is_good(kept: KeptAnswer) -> bool:
    return kept.answer.finish_reason != "length" and bool(clean(kept.answer.text))


def _outcome(kept: KeptAnswer, tokens: Tokens, attempts: int, digest: str) -> RowOutcome:
    answer = kept.answer
    return RowOutcome(
        clean(answer.text),
        answer.finish_reason,
        answer.n_tokens,
        attempts,
        None,
        digest,
        kept.engine,
        kept.date,
        tokens,
    )
