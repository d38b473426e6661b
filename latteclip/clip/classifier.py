"""Classifiers as files: one vector per class, and what describes them.

Letters: C classes, D embedding width.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from latteclip.core.errors import UserError
from latteclip.core.files import replacing

KEY = "classifier"  # of the tensor, and of the one entry of the metadata
# What a classifier is of instead, where an entry of its description is not the expected one.
EXPECTED = {
    "classnames": "other classes",
    "model": "another CLIP",
    "pretrained": "another CLIP",
}


def save_classifier(
    path: str | Path, classifier: torch.Tensor, described: Mapping[str, Any]
) -> None:
    """Write a classifier [C, D] as float32, with what describes it as JSON.

    The JSON is one entry of the metadata: safetensors writes several in random order, and equal
    classifiers must be equal files.
    """
    tensor = classifier.detach().float().cpu().contiguous()
    with replacing(path) as temporary:
        save_file({KEY: tensor}, temporary, {KEY: json.dumps(described, ensure_ascii=False)})


def load_classifier(path: str | Path, **expected: object) -> tuple[torch.Tensor, dict[str, Any]]:
    """A classifier [C, D] on the CPU, and what describes it.

    Args:
        path: what `save_classifier` wrote.
        expected: entries that the description must have: keys of EXPECTED.

    Raises:
        UserError: there is no such file, it holds something else, or it is of other classes or of
            another model than expected.
    """
    classifier, described = _read(path)
    if any(described.get(key) != value for key, value in expected.items()):
        others = " or ".join(dict.fromkeys(EXPECTED[key] for key in expected))
        raise UserError(f"{path} is of {others} than asked for; rerun its stage.")
    return classifier, described


def _read(path: str | Path) -> tuple[torch.Tensor, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(KEY), json.loads(file.metadata()[KEY])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it.") from None
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a classifier ({error}); delete it and rerun its stage."
        ) from None
