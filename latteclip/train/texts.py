"""A bank of texts, each distinct one tokenised once and encoded once per batch.

Letters: T texts asked for, U distinct texts, L tokens, D embedding width.
"""

from collections.abc import Sequence

import torch

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.core import devices
from latteclip.train import parallel

ROWS = 2**14  # texts tokenised at once


class TextBank:
    """Distinct texts of a dataset and their tokens."""

    def __init__(self, clip: clips.Clip) -> None:
        self.clip = clip
        self._ids: dict[str, int] = {}
        self._tokens: torch.Tensor | None = None

    def add(self, texts: Sequence[str]) -> torch.Tensor:
        """Ids [T] of the texts; the same text always has the same id."""
        self._tokens = None
        return torch.tensor([self._ids.setdefault(text, len(self._ids)) for text in texts])

    @property
    def texts(self) -> list[str]:
        """The U distinct texts, in the order of their ids."""
        return list(self._ids)

    @property
    def tokens(self) -> torch.Tensor:
        """int32 [U, L] of all texts added so far."""
        if self._tokens is None:
            texts = self.texts
            parts = [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]
            self._tokens = torch.cat([self.clip.tokenizer(part).int() for part in parts])
        return self._tokens

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """L2-normalised features [*ids.shape, D], with gradient.

        Each distinct text is encoded once, by one of the processes.
        """
        distinct, where = ids.unique(return_inverse=True)
        own = encode.encode_texts(self.clip, self.tokens[parallel.share(distinct)].long())
        return parallel.gather(own, len(distinct))[devices.send(where, self.clip.device)]
