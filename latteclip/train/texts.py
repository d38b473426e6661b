"""A bank of texts, each distinct one tokenised once and encoded once per batch.

Letters: T texts asked for, U distinct texts, L tokens, D embedding width.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.core import devices, tables
from latteclip.train import parallel

ROWS = 2**14  # texts tokenised at once


class TextBank:
    """Distinct texts of a dataset and their tokens."""

    def __init__(self, clip: clips.Clip) -> None:
        self.clip = clip
        self._texts = pa.chunked_array([], pa.large_string())  # no limit of 2 GiB
        self._tokens: torch.Tensor | None = None

    def add(self, texts: Sequence[str] | pa.ChunkedArray) -> torch.Tensor:
        """Ids [T] of the texts; the same text always has the same id."""
        if not isinstance(texts, pa.ChunkedArray):
            texts = pa.chunked_array([texts], pa.string())
        texts, self._tokens = texts.cast(pa.large_string()), None
        n_known = len(self._texts)
        # Numbered in the order in which they first come, so that known ones keep their ids.
        both = pa.chunked_array([*self._texts.chunks, *texts.chunks], texts.type)
        encoded = pc.dictionary_encode(both).combine_chunks()
        self._texts = pa.chunked_array([encoded.dictionary])
        return torch.from_numpy(encoded.indices.to_numpy()[n_known:].astype(np.int64))

    @property
    def texts(self) -> tables.Strings:
        """The U distinct texts, in the order of their ids."""
        return tables.Strings(self._texts)

    @property
    def tokens(self) -> torch.Tensor:
        """int32 [U, L] of all texts added so far."""
        if self._tokens is None:
            self._tokens = self._tokenized()
        return self._tokens

    def _tokenized(self) -> torch.Tensor:
        """int32 [U, L], filled in part by part: `cat` would hold all twice."""
        texts, width = self.texts, self.clip.tokenizer([""]).shape[1]
        tokens = torch.empty(len(texts), width, dtype=torch.int32)
        for start in range(0, len(texts), ROWS):
            part = self.clip.tokenizer(list(texts[start : start + ROWS]))
            tokens[start : start + len(part)] = part
        return tokens

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """L2-normalised features [*ids.shape, D], with gradient.

        Each distinct text is encoded once, by one of the processes.
        """
        distinct, where = ids.unique(return_inverse=True)
        own = encode.encode_texts(self.clip, self.tokens[parallel.share(distinct)].long())
        return parallel.gather(own, len(distinct))[devices.send(where, self.clip.device)]
