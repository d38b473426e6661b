"""Classifiers as files: one vector and one bias per class, and what describes them.

Letters: N images, C classes, D embedding width, K best classes kept.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from latteclip.clip.feature_memmap import Features, parts
from latteclip.core.errors import DELETE_AND_RERUN, UserError, first_line
from latteclip.core.files import replacing
from latteclip.core.hashing import digest

KEY = "classifier"  # of the matrix, and of the one entry of the metadata
BIAS = "classifier_bias"  # of the vector
ROWS = 2**14  # images whose scores are held at once
SUM = "sha256"  # in the description: of all the rest
# What a classifier is of instead, where an entry of its description is not the expected one.
EXPECTED = {
    "classnames": "other classes",
    "model": "another CLIP",
    "pretrained": "another CLIP",
}


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of L2-normalised image features.

    Class texts and prototypes are its rows, and their bias is zero. Where features are centred or
    class means are taken off, that is in the rows and the bias.
    """

    weights: torch.Tensor  # [C, D] float32
    bias: torch.Tensor  # [C] float32, in units of the scores

    @classmethod
    def of(cls, weights: torch.Tensor, bias: torch.Tensor | None = None) -> Self:
        """The classifier with these rows [C, D], on the CPU; without a bias [C] that is zero."""
        rows = weights.detach().float().cpu().contiguous()
        if bias is None:
            return cls(rows, torch.zeros(len(rows)))
        return cls(rows, bias.detach().float().cpu().contiguous())

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Scores [N, C] of image features [N, D]; cosines where the rows are L2-normalised.

        Times the model's `exp(logit_scale)` they are the logits of a softmax.
        """
        return torch.addmm(self.bias, features, self.weights.T)


def save_classifier(path: str | Path, classifier: Classifier, described: Mapping[str, Any]) -> None:
    """Write a classifier, with what describes it as JSON.

    The JSON is one entry of the metadata: safetensors writes several in random order, and equal
    classifiers must be equal files. It has a checksum of itself and the numbers.
    """
    tensors = {KEY: classifier.weights, BIAS: classifier.bias}
    signed = {**described, SUM: _sum(classifier, described)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {KEY: json.dumps(signed, ensure_ascii=False)})


def _sum(classifier: Classifier, described: Mapping[str, Any]) -> str:
    numbers = [tensor.numpy().tobytes() for tensor in (classifier.weights, classifier.bias)]
    return digest(json.dumps(described), *numbers)


def load_classifier(path: str | Path, **expected: object) -> tuple[Classifier, dict[str, Any]]:
    """A classifier on the CPU, and what describes it.

    Args:
        path: what `save_classifier` wrote.
        expected: entries that the description must have: keys of EXPECTED.

    Raises:
        UserError: there is no such file, it holds something else or numbers that cannot classify,
            or it is of other classes or of another model than expected.
    """
    classifier, described = _read(path)
    _check(path, classifier, described)
    described.pop(SUM, None)
    if any(described.get(key) != value for key, value in expected.items()):
        others = " or ".join(dict.fromkeys(EXPECTED[key] for key in expected))
        raise UserError(f"{path} is of {others} than asked for; rerun its stage.")
    return classifier, described


def _read(path: str | Path) -> tuple[Classifier, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            # Files of version 0.1 have no bias.
            bias = _floats(file, BIAS) if BIAS in file.keys() else None  # noqa: SIM118
            return Classifier.of(_floats(file, KEY), bias), json.loads(file.metadata()[KEY])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it.") from None
    except (SafetensorError, OSError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a classifier ({first_line(error)}); {DELETE_AND_RERUN}."
        ) from None


def _floats(file: Any, name: str) -> torch.Tensor:
    """Return a tensor of an opened file.

    Raises:
        ValueError: it holds no floating-point numbers, of which vectors of classes are.
    """
    tensor: torch.Tensor = file.get_tensor(name)
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has the dtype {tensor.dtype}, not a floating-point one")
    return tensor


def _check(path: str | Path, classifier: Classifier, described: Any) -> None:
    """Raise UserError where matrix, bias and class names do not fit, or a number is not finite."""
    wrong = _wrong(classifier, described)
    if wrong:
        raise UserError(f"{path} holds {wrong}; {DELETE_AND_RERUN}.")


def _wrong(classifier: Classifier, described: Any) -> str | None:
    """What is wrong with a classifier; None where nothing is."""
    weights, bias = classifier.weights, classifier.bias
    if not isinstance(described, dict):
        return "a description that is not a JSON object"
    rest = {key: value for key, value in described.items() if key != SUM}
    if described.get(SUM, wanted := _sum(classifier, rest)) != wanted:
        return "numbers or names that are not those that were written"
    names = described.get("classnames")
    if names is not None and not _are_names(names):
        return "class names that are not a list of different strings"
    if weights.ndim != 2 or bias.shape != weights.shape[:1]:
        return f"a matrix of shape {[*weights.shape]} with a bias of shape {[*bias.shape]}"
    if not weights.numel():
        return "no class"
    if names is not None and len(names) != len(weights):
        return f"{len(weights)} rows for {len(names)} class names"
    if not (weights.isfinite().all() and bias.isfinite().all()):
        return "numbers that are not finite"
    return None


def _are_names(names: Any) -> bool:
    are_strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return are_strings and len(set(names)) == len(names)


def best_classes(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best classes of each row [N, C], best first, and their scores, both [N, min(k, C)].

    Equal scores are ordered by class, so that the first column is always `scores.argmax(1)`.
    """
    best = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    indices, values = best.indices[:, :k], best.values[:, :k]
    # `topk` orders equal scores as it likes; only rows that have some are worth the sorting.
    ties = (best.values[:, 1:] == best.values[:, :-1]).any(dim=1)
    if ties.any():
        ordered = scores[ties].sort(dim=1, descending=True, stable=True)
        indices[ties] = ordered.indices[:, :k]
    return indices, values


def classify(
    features: Features, classifier: Classifier, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`best_classes` of images [N, D] under a classifier; ROWS of [N, C] at a time."""
    every = parts(len(features), ROWS)
    found = [best_classes(classifier.scores(features[rows]), k) for rows in every]
    indices, values = zip(*found, strict=True)
    return torch.cat(indices), torch.cat(values)
