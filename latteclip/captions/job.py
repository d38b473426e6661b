"""What tables of captions and of class scores have in common: how they are made, what is kept."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from latteclip.captions import kept
from latteclip.captions.answers import AnswerStore
from latteclip.captions.engines.base import CaptionerSettings
from latteclip.captions.shard import ALL_ROWS, Shard
from latteclip.core.signals import ending_in_order


@dataclass(frozen=True)
class CaptionJob:
    """How a table of captions, or of class scores, is made."""

    settings: CaptionerSettings
    output: str
    store: str | None  # folder of the kept answers; None keeps them for this run alone
    threads: int
    shard: Shard = ALL_ROWS

    @contextlib.contextmanager
    def keeping(self, what: str, fault: kept.Fault = kept.fault) -> Iterator[AnswerStore]:
        """The store of the answers, which a signal leaves whole.

        Args:
            what: is kept, in the plural.
            fault: see `AnswerStore`.
        """
        saved = f"The {what} so far are kept in {self.store}: rerun to go on."
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                ending_in_order(saved if self.store else "Without --store, all is lost.")
            )
            folder = self.store or stack.enter_context(tempfile.TemporaryDirectory())
            yield stack.enter_context(AnswerStore(folder, fault))
