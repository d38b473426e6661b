"""A tuned model in the forms that other software loads.

Each form is a folder with the weights as its library expects them, the classifier, the class names
as CLIP_benchmark reads them, and a model card.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from latteclip.clip import tuned
from latteclip.clip.classifier import load_classifier, save_classifier
from latteclip.clip.model import CLASSIFIER
from latteclip.core import checksums
from latteclip.core.errors import UserError
from latteclip.core.files import new_folder, replacing, write_json
from latteclip.core.prompts import PLACE
from latteclip.deploy.model_card import Provenance, card, provenance

log = logging.getLogger(__name__)
# As --custom_classname_file and --custom_template_file of CLIP_benchmark read them.
BENCHMARK_CLASSNAMES = "clip_benchmark_classnames.json"
BENCHMARK_TEMPLATES = "clip_benchmark_templates.json"
BENCHMARK_PLACE = "{c}"


def export(model: str, destination: str, form: str, licence: str | None = None) -> str:
    """Write a tuned model to a new folder, whole or not at all.

    Args:
        model: results/<dataset>, where a model was chosen, or the folder of a model or run.
        destination: a folder that does not exist, or is empty.
        form: a key of FORMS.
        licence: of the weights, as the hub spells it (mit, cc-by-nc-4.0, ...).

    Returns:
        The command that uploads the folder to the Hugging Face hub.

    Raises:
        UserError: the model is not a tuned one or has no such form, or the folder holds something.
    """
    folder = new_folder(destination)
    opened = tuned.load(model, torch.device("cpu"))
    if folder.is_relative_to(opened.folder.resolve()):
        raise UserError(f"{destination} lies in the folder of the model; name another one.")
    origin = provenance(opened.folder)
    with replacing(folder) as temporary:
        temporary.mkdir()
        FORMS[form](opened, temporary)
        # Written anew: a file of version 0.1 has no bias, which the card's lines of Python read.
        save_classifier(temporary / CLASSIFIER, *load_classifier(opened.folder / CLASSIFIER))
        _write_benchmark_files(opened, origin, temporary)
        text = card(opened, origin, form, licence)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        checksums.write(temporary)
    log.info("%s: %d classes as %s.", destination, len(opened.classnames), form)
    return f"hf upload <user>/<name> {destination}"


def _write_benchmark_files(opened: tuned.TunedModel, origin: Provenance, folder: Path) -> None:
    """Class names and templates by dataset; CLIP_benchmark writes {c} where we write {}."""
    templates = [one.replace(PLACE, BENCHMARK_PLACE) for one in opened.words.templates]
    write_json(folder / BENCHMARK_CLASSNAMES, {origin.dataset: opened.classnames})
    write_json(folder / BENCHMARK_TEMPLATES, {origin.dataset: templates})


def _open_clip(opened: tuned.TunedModel, folder: Path) -> None:
    """The files of the model's own folder, which are what open_clip reads from the hub."""
    hidden = shutil.ignore_patterns(".*")  # Snakemake's, and what is being written
    shutil.copytree(opened.folder, folder, dirs_exist_ok=True, ignore=hidden)


def _transformers(opened: tuned.TunedModel, folder: Path) -> None:
    from latteclip.deploy import transformers_clip

    transformers_clip.write(opened, folder)


def _onnx(opened: tuned.TunedModel, folder: Path) -> None:
    from latteclip.deploy import onnx_graph

    onnx_graph.write(opened, folder)


FORMS: dict[str, Callable[[tuned.TunedModel, Path], None]] = {
    "open_clip": _open_clip,
    "transformers": _transformers,
    "onnx": _onnx,
}
