"""A bank of texts, each distinct one tokenised once and encoded once a batch.

Letters: T texts asked for, U distinct texts, L tokens, D embedding width.
"""

from collections.abc import Sequence

import torch

from latteclip import clip as clips


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
    def tokens(self) -> torch.Tensor:
        """[U, L] of all texts added so far."""
        if self._tokens is None:
            self._tokens = self.clip.tokenizer(list(self._ids))
        return self._tokens

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """L2-normalised features [*ids.shape, D], with gradient."""
        distinct, where = ids.unique(return_inverse=True)
        return clips.encode_texts(self.clip, self.tokens[distinct])[where.to(self.clip.device)]
