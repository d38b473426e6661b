"""Classifiers as files: one vector a class, and what describes them.

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


def load_classifier(path: str | Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """A classifier [C, D] on the CPU, and what describes it.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(KEY), json.loads(file.metadata()[KEY])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it.") from None
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no classifier ({error}); delete it and rerun its stage."
        ) from None
