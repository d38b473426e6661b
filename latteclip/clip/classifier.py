"""Linear classifiers of image features, and the files that hold them.

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

KEY = "classifier"  # of the matrix, and of the one entry of the metadata
BIAS = "classifier_bias"  # of the vector
ROWS = 2**14  # images whose scores are held at once
# How a classifier differs if an entry of its description is not the expected one.
EXPECTED = {
    "classnames": "other classes",
    "model": "another CLIP",
    "pretrained": "another CLIP",
}


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of L2-normalised image features.

    Class texts and prototypes are its rows, and their bias is zero. Centred features and subtracted
    class means are part of the rows and the bias.
    """

    weights: torch.Tensor  # [C, D] float32
    bias: torch.Tensor  # [C] float32, in units of the scores

    @classmethod
    def of(cls, weights: torch.Tensor, bias: torch.Tensor | None = None) -> Self:
        """Return the classifier with these rows [C, D] and bias [C] on the CPU. None: no bias."""
        rows = weights.detach().float().cpu().contiguous()
        if bias is None:
            return cls(rows, torch.zeros(len(rows)))
        return cls(rows, bias.detach().float().cpu().contiguous())

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return scores [N, C] of image features [N, D], cosines if the rows are L2-normalised.

        Times the model's `exp(logit_scale)` they are the logits of a softmax.
        """
        return torch.addmm(self.bias, features, self.weights.T)


def save_classifier(path: str | Path, classifier: Classifier, described: Mapping[str, Any]) -> None:
    """Write a classifier with its description.

    The description is JSON in one entry of the metadata: safetensors writes several entries in
    random order, and equal classifiers must be equal files.
    """
    tensors = {KEY: classifier.weights, BIAS: classifier.bias}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {KEY: json.dumps(described, ensure_ascii=False)})


def load_classifier(path: str | Path, **expected: object) -> tuple[Classifier, dict[str, Any]]:
    """Load a classifier to the CPU, with its description.

    Args:
        path: a file of `save_classifier`.
        expected: entries that the description must have, with keys of EXPECTED.

    Raises:
        UserError: there is no such file, it holds something else or numbers that cannot classify,
            or it is of other classes or of another model than expected.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights, bias = file.get_tensor(KEY), file.get_tensor(BIAS)
            described = json.loads(file.metadata()[KEY])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it.") from None
    except (SafetensorError, OSError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a classifier ({first_line(error)}); {DELETE_AND_RERUN}."
        ) from None
    if problem := _problem(weights, bias, described):
        raise UserError(f"{path} holds {problem}; {DELETE_AND_RERUN}.")
    if any(described.get(key) != value for key, value in expected.items()):
        others = " or ".join(dict.fromkeys(EXPECTED[key] for key in expected))
        raise UserError(f"{path} is of {others} than asked for; rerun its stage.")
    return Classifier.of(weights, bias), described


def _problem(weights: torch.Tensor, bias: torch.Tensor, described: Any) -> str | None:
    """Describe what is wrong with a classifier. The file may come from a model folder of others."""
    if not isinstance(described, dict):
        return "a description that is not a JSON object"
    names = described.get("classnames")
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names is not None and not (are_names and len(set(names)) == len(names)):
        return "class names that are not a list of different strings"
    if weights.ndim != 2 or not weights.numel() or bias.shape != weights.shape[:1]:
        return f"a matrix of shape {[*weights.shape]} with a bias of shape {[*bias.shape]}"
    if names is not None and len(names) != len(weights):
        return f"{len(weights)} rows for {len(names)} class names"
    for tensor in (weights, bias):
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            return "numbers that are not finite floating-point ones"
    return None


def best_classes(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best classes of each row [N, C], best first, and their scores.

    Both are [N, min(k, C)].

    Equal scores are ordered by class, so that the first column is always `scores.argmax(1)`.
    """
    best = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    indices, values = best.indices[:, :k], best.values[:, :k]
    # `topk` orders equal scores arbitrarily. Only rows with equal scores are sorted.
    ties = (best.values[:, 1:] == best.values[:, :-1]).any(dim=1)
    if ties.any():
        ordered = scores[ties].sort(dim=1, descending=True, stable=True)
        indices[ties] = ordered.indices[:, :k]
    return indices, values


def classify(
    features: Features, classifier: Classifier, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `best_classes` of images [N, D] under a classifier, ROWS images at a time."""
    best = [
        best_classes(classifier.scores(features[rows]), k) for rows in parts(len(features), ROWS)
    ]
    indices, values = zip(*best, strict=True)
    return torch.cat(indices), torch.cat(values)
