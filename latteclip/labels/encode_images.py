"""Features of all images by an image encoder beside CLIP: not in the paper."""

import logging

from latteclip.clip import image_encoders
from latteclip.clip.classifier import ROWS, parts
from latteclip.clip.encode import encode_files
from latteclip.config.sections.base import Section
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.core import devices, tables
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)


class EncodingSettings(Section):
    """An image encoder, and how images are encoded."""

    encoder: str  # one of the key `image_encoders`
    clip: ClipSection  # its `precision`
    inference: InferenceSection  # its `batch_size`


def encode_images(
    images_path: str, settings: EncodingSettings, output: str, *, device: str, threads: int
) -> None:
    """Write IMAGE_FEATURES of every image of every split."""
    table, _ = tables.read_unlabelled(images_path, training=False)
    picked = devices.pick(device, threads)
    model = image_encoders.load(settings.encoder, picked, settings.clip.precision)
    features = encode_files(
        model, tables.Strings(table["path"]), settings.inference.batch_size, threads
    )
    with tables.writing(
        output, tables.IMAGE_FEATURES, image_encoders.metadata_of(model)
    ) as add:
        for rows in parts(len(features), ROWS):
            part = features[rows]
            ids = table["image_id"].slice(rows.start, ROWS)
            broken = (~part.isfinite().all(dim=1)).nonzero()
            if len(broken):
                raise UserError(
                    f"Image encoder {settings.encoder!r} gives features that are not finite "
                    f"numbers for the image {ids[int(broken[0])].as_py()!r}; take it out of "
                    "image_encoders."
                )
            add({"image_id": ids, "image_features": tables.list_column(part.numpy())})
    log.info(
        "Encoded %d images by %s, width %d.", len(table), settings.encoder, model.width
    )
