"""Features of N images, of width D, and what scores them: classifiers of C classes, and detectors.

The detector finds images of none of the classes without labels (not in the paper).
"""

import json
import math
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from latteclip.core.errors import DELETE_AND_RERUN, UserError, first_line
from latteclip.core.files import replacing

# Folder in a model's folder, with a folder 0, 1, ... for each encoder.
ENCODERS = "image_encoders"
KEY = "classifier"  # names the matrix, and the one entry of the metadata
BIAS = "classifier_bias"  # names the vector
ROWS = 2**13  # images whose scores are held at once


class FeatureMemmap:
    """A table [N, D] of float32 zeros in a temporary file, which goes with the process.

    Rows are indexed like a tensor's, by slices, indices or masks. Reads return copies. OSError: the
    disk is full.
    """

    def __init__(self, n: int, width: int) -> None:
        self.shape = (n, width)
        self._file = tempfile.TemporaryFile(prefix="latteclip-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        # An empty file cannot be mapped.
        size = max(1, n * width * np.dtype(np.float32).itemsize)
        # Allocated now: a mapped file that outgrows its disk would kill the process.
        if hasattr(os, "posix_fallocate"):  # on Linux
            os.posix_fallocate(self._file.fileno(), 0, size)
        else:
            self._file.truncate(size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.array(self._mapped()[self._index(rows)]))

    def __setitem__(
        self, rows: slice | torch.Tensor, values: torch.Tensor
    ) -> None:
        self._mapped()[self._index(rows)] = values.numpy()

    @staticmethod
    def _index(rows: slice | torch.Tensor) -> slice | np.ndarray:
        """Return rows as an array, for NumPy takes a tensor of one number as that number."""
        return rows if isinstance(rows, slice) else np.asarray(rows)

    def read(self) -> np.ndarray:
        """Return the table in memory, without the pages of a mapping beside it."""
        self._file.seek(0)
        return np.fromfile(self._file, np.float32).reshape(self.shape)

    def _mapped(self) -> np.ndarray:
        """Map the table each time: pages of a mapping count as the process's memory."""
        return np.memmap(self._file, np.float32, "r+", shape=self.shape)


Features = torch.Tensor | FeatureMemmap  # [N, D], in memory or not


def parts(n: int, size: int = ROWS) -> Iterator[slice]:
    """Return slices of N rows, `size` rows at a time."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of L2-normalised image features."""

    weights: torch.Tensor  # [C, D] float32
    # [C] float32, in units of the scores; 0 for class texts and prototypes
    bias: torch.Tensor

    @classmethod
    def of(cls, weights: torch.Tensor, bias: torch.Tensor | None = None) -> Self:
        """Return the classifier with these rows [C, D] and bias [C] on the CPU. None: no bias."""
        bias = torch.zeros(len(weights)) if bias is None else bias
        return cls(_on_cpu(weights), _on_cpu(bias))

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return scores [N, C] of image features [N, D], cosines if the rows are L2-normalised."""
        return torch.addmm(self.bias, features, self.weights.T)


def _on_cpu(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.detach().float().cpu().contiguous()


def save_classifier(
    path: str | Path, classifier: Classifier, described: Mapping[str, Any]
) -> None:
    """Write a classifier with its description."""
    # In one entry of the metadata, for safetensors writes several entries in random order.
    tensors = {KEY: classifier.weights, BIAS: classifier.bias}
    with replacing(path) as temporary:
        save_file(
            tensors, temporary, {KEY: json.dumps(described, ensure_ascii=False)}
        )


def load_classifier(path: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """Load a classifier to the CPU, with its description.

    UserError: there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            classifier = Classifier.of(file.get_tensor(KEY), file.get_tensor(BIAS))
            described = dict(json.loads(file.metadata()[KEY]))
    except Exception as error:  # safetensors and torch raise many
        raise UserError(
            f"{path} is not a classifier ({first_line(error)}); {DELETE_AND_RERUN}."
        ) from None
    return classifier, described


def best_classes(
    scores: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the min(k, C) best classes of rows [N, C], best first (ties by class), and scores."""
    ordered = scores.sort(dim=1, descending=True, stable=True)
    # Copies: a view would keep all C columns in memory.
    return ordered.indices[:, :k].clone(), ordered.values[:, :k].clone()


def classify(
    features: Features, classifier: Classifier, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `best_classes` of images [N, D] under a classifier, ROWS images at a time."""
    best = [
        best_classes(classifier.scores(features[rows]), k)
        for rows in parts(len(features))
    ]
    indices, values = zip(*best, strict=True)
    return torch.cat(indices), torch.cat(values)


@dataclass(frozen=True)
class UnknownDetector:
    """Scores images from 0 to 2 by the pretrained CLIP, and calls those above a threshold unknown.

    A score is the cosine distance from the nearest class text, after the mean feature of the
    training images is subtracted.
    """

    texts: torch.Tensor  # [C, D] L2-normalised
    mean: torch.Tensor  # [D]
    threshold: float
    described: Mapping[str, Any]  # includes model and pretrained

    @classmethod
    def learn(
        cls,
        features: Features,
        training: torch.Tensor,
        texts: torch.Tensor,
        described: Mapping[str, Any],
    ) -> Self:
        """Return a detector by the mean of the training images, without a threshold yet."""
        total = torch.zeros(features.shape[1], dtype=torch.float64)
        for rows in parts(len(features)):
            total += features[rows][training[rows]].double().sum(dim=0)
        mean = (total / training.sum()).float()
        return cls(texts, mean, math.inf, described)

    def scores(self, features: Features) -> torch.Tensor:
        """Return scores [N] of L2-normalised image features [N, D]."""
        centred = (features[rows] - self.mean for rows in parts(len(features)))
        nearest = [
            (F.normalize(part, dim=1) @ self.texts.T).amax(dim=1)
            for part in centred
        ]
        return 1 - torch.cat(nearest)

    def save(self, path: str | Path) -> None:
        """Write the detector, whole or not at all."""
        learned = {"mean": self.mean.tolist(), "threshold": self.threshold}
        save_classifier(
            path, Classifier.of(self.texts), {**self.described, **learned}
        )


def load_detector(path: str | Path) -> UnknownDetector:
    """Load the detector that `UnknownDetector.save` wrote, or raise UserError."""
    classifier, described = load_classifier(path)
    mean = torch.tensor(described.pop("mean"))
    line = described.pop("threshold")
    return UnknownDetector(classifier.weights, mean, line, described)
