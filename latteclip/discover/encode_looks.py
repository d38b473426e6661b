"""Image features of CLIP for images whose classes are not known yet: [N, D], L2-normalised."""

from dataclasses import dataclass

from latteclip.clip import model as clips
from latteclip.clip.classifier import ROWS, parts
from latteclip.clip.encode import encode_files
from latteclip.core import devices, tables


@dataclass(frozen=True)
class LooksSettings:
    """The CLIP model, and how images are encoded."""

    model: str
    pretrained: str | None
    batch_size: int
    precision: str = "bf16"


def encode_looks(
    images_path: str, settings: LooksSettings, output: str, *, device: str, threads: int
) -> None:
    """Write IMAGE_FEATURES of the training images by CLIP."""
    table, _ = tables.read_unlabelled(images_path, training=True)
    picked = devices.pick(device, threads)
    clip = clips.load(settings.model, settings.pretrained, picked, settings.precision)
    features = encode_files(clip, tables.Strings(table["path"]), settings.batch_size, threads)
    metadata = {"model": settings.model, "pretrained": settings.pretrained}
    with tables.writing(output, tables.IMAGE_FEATURES, metadata) as add:
        for rows in parts(len(features), ROWS):
            ids = table["image_id"].slice(rows.start, ROWS)
            column = tables.list_column(features[rows].numpy())
            add({"image_id": ids, "image_features": column})
