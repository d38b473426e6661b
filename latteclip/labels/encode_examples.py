"""Features of examples, which are images of known classes that are not in the dataset."""

import logging

import torch

from latteclip.clip import image_encoders
from latteclip.clip import model as clips
from latteclip.clip.encode import encode_files
from latteclip.clip.model import Clip
from latteclip.config.sections.base import Section
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import devices, tables
from latteclip.core.metadata import ExamplesMetadata
from latteclip.data.examples import find_examples

log = logging.getLogger(__name__)


class ExamplesSettings(Section):
    """The folder of examples, and the models that encode them."""

    examples_folder: str
    replacements: dict[str, str]  # replacements in names of folders
    clip: ClipSection
    encoders: list[str]  # names of the key `image_encoders`
    inference: InferenceSection  # its `batch_size`


def encode_examples(
    images_path: str, settings: ExamplesSettings, output: str, *, device: str, threads: int
) -> None:
    """Write EXAMPLES: features by CLIP and by each image encoder, side by side."""
    _, classnames = tables.read_unlabelled(images_path, training=True)
    examples = find_examples(settings.examples_folder, classnames, settings.replacements)
    paths = [example.path for example in examples]
    picked = devices.pick(device, threads)
    clip = settings.clip
    names = [clip.model, *settings.encoders]
    features = []
    for number, name in enumerate(names):
        model: Clip = (
            clips.load(clip.model, clip.pretrained, picked, clip.precision)
            if number == 0
            else image_encoders.load(name, picked, clip.precision)
        )
        encoded = encode_files(model, paths, settings.inference.batch_size, threads)
        features.append(encoded[:])
    widths = [table.shape[1] for table in features]
    columns = {
        "path": paths,
        "classname": [example.classname for example in examples],
        "image_features": tables.list_column(torch.cat(features, dim=1).numpy()),
    }
    tables.write(output, columns, tables.EXAMPLES, ExamplesMetadata(names, widths))
    log.info(
        "Encoded %d examples of %d classes.", len(examples), len({*columns["classname"]})
    )
