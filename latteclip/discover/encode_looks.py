"""Image features of CLIP for images whose classes are not known yet: [N, D], L2-normalised."""

import logging

from latteclip.clip import model as clips
from latteclip.clip.classifier import ROWS, parts
from latteclip.clip.encode import encode_files
from latteclip.config.sections.base import Section
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import devices, tables
from latteclip.core.metadata import EncoderMetadata

log = logging.getLogger(__name__)


class LooksSettings(Section):
    """The CLIP model, and how images are encoded."""

    clip: ClipSection
    inference: InferenceSection  # its `batch_size`


def encode_looks(
    images_path: str, settings: LooksSettings, output: str, *, device: str, threads: int
) -> None:
    """Write IMAGE_FEATURES of the training images by CLIP."""
    table, _ = tables.read_unlabelled(images_path, training=True)
    model = settings.clip.model
    picked = devices.pick(device, threads)
    clip = clips.load(model, settings.clip.pretrained, picked, settings.clip.precision)
    paths = tables.Strings(table["path"])
    features = encode_files(clip, paths, settings.inference.batch_size, threads)
    metadata = EncoderMetadata(model=model, width=features.shape[1])
    with tables.writing(output, tables.IMAGE_FEATURES, metadata) as add:
        for rows in parts(len(features), ROWS):
            ids = table["image_id"].slice(rows.start, ROWS)
            column = tables.list_column(features[rows].numpy())
            add({"image_id": ids, "image_features": column})
    log.info("Encoded %d images by %s.", len(table), model)
