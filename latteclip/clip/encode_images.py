"""Features of images by CLIP and encoders beside it, and of examples by all of them.

Examples are images of known classes that are not in the dataset.
"""

import logging

import pyarrow as pa
import torch

from latteclip.clip import image_encoders
from latteclip.clip import model as clips
from latteclip.clip.classifier import parts
from latteclip.clip.feature_store import encode_once
from latteclip.clip.model import Clip
from latteclip.config.keys import ClipSection, Section
from latteclip.core import devices, tables
from latteclip.core.files import replacing, write_json
from latteclip.core.tables import EncoderMetadata
from latteclip.data.folder_files import find_examples
from latteclip.data.images import checksum, read_image

log = logging.getLogger(__name__)


def encode_images(
    images_path: str,
    encoder: str,
    clip: ClipSection,
    store: str,
    output: str,
    model_output: str | None = None,
    seconds_output: str | None = None,
    *,
    device: str,
    threads: int,
) -> None:
    """Write IMAGE_FEATURES of every image of every split, and perhaps the encoder's folder.

    The encoder is one of the key `image_encoders`, with the `precision` of CLIP, or "", which is
    CLIP. `store` is the folder of features that earlier runs encoded. The last output has the
    seconds that each image took.
    """
    table, _ = tables.read_unlabelled(images_path, training=False)
    picked = devices.pick(device, threads)
    model = _encoder(encoder, clip, picked)
    features, seconds = encode_once(
        model, table["path"], table["checksum"], store, threads
    )
    name = encoder or clip.model
    metadata = EncoderMetadata(name, model.width)
    with tables.writing(output, tables.IMAGE_FEATURES, metadata) as add:
        for rows in parts(len(features)):
            add(
                {
                    "image_id": table["image_id"][rows],
                    "image_features": tables.list_column(features[rows].numpy()),
                }
            )
    if model_output:
        with replacing(model_output) as folder:
            model.save(folder)
    if seconds_output:
        write_json(seconds_output, {"seconds_per_image": seconds})


def _encoder(name: str, clip: ClipSection, device: torch.device) -> Clip:
    """Load an image encoder of the key `image_encoders`, or the image tower of CLIP."""
    if name:
        return image_encoders.load(name, device, clip.precision)
    return clips.load(clip.model, clip.pretrained, device, clip.precision)


class ExamplesSettings(Section):
    """The folder of examples, and the models that encode them."""

    examples_folder: str
    replacements: dict[str, str]  # replacements in names of folders
    clip: ClipSection
    encoders: list[str]  # names of the key `image_encoders`


def encode_examples(
    images_path: str,
    settings: ExamplesSettings,
    store: str,
    output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Write EXAMPLES: features by CLIP and by each image encoder, side by side.

    `store` is that of `encode_images`.
    """
    _, classnames = tables.read_unlabelled(images_path, training=True)
    examples = find_examples(
        settings.examples_folder, classnames, settings.replacements
    )
    paths = [path for path, _ in examples]
    picked = devices.pick(device, threads)
    files = pa.chunked_array([paths], pa.string())
    checksums = pa.chunked_array([[checksum(read_image(path)) for path in paths]])
    checksums = checksums.cast(tables.IMAGES.field("checksum").type)
    features = []
    for name in ("", *settings.encoders):
        model = _encoder(name, settings.clip, picked)
        features.append(encode_once(model, files, checksums, store, threads)[0][:])
    columns = {
        "path": paths,
        "classname": [classname for _, classname in examples],
        "image_features": tables.list_column(torch.cat(features, dim=1).numpy()),
    }
    tables.write(output, columns, tables.EXAMPLES)
    log.info(
        "Encoded %d examples of %d classes.",
        len(examples),
        len({*columns["classname"]}),
    )
