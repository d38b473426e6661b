"""List the images that trainings learn from. The list, and so the models, outlive small changes."""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from latteclip.captions.metadata import CaptionsMetadata
from latteclip.config import hub_names
from latteclip.core import tables
from latteclip.core.hashing import digest_of, fingerprint, sha256
from latteclip.core.metadata import IndexMetadata
from latteclip.labels.fusion_report import read_fusion_report
from latteclip.train.data import TrainingFiles, TrainingImagesMetadata, labels_of
from latteclip.train.settings import FinetuneSettings

log = logging.getLogger(__name__)
DIGEST = partial(hashlib.blake2b, digest_size=16)  # of what a training learns of an image


def list_training_images(
    files: TrainingFiles,
    settings: FinetuneSettings,
    output: str,
    model_notes: Sequence[str] = (),
    *,
    code: str,
    retrain_share: float,
    retrainings: int,
) -> None:
    """Write TRAINING_IMAGES, or leave an earlier list as it is where little changed.

    The earlier list stays where settings, code and a person's answers are those of that list, and
    at most the share `retrain_share` of the images is new, gone, or has another label or caption.
    `code` is a digest of the code of trainings, `retrainings` counts how often a user asked for new
    ones, and `model_notes` are notes on models of the hub. Only a supervised training reads labels.
    """
    table, classnames = tables.read_unlabelled(files.images, training=True)
    ids = table["image_id"]
    content = list(_content(files, settings, table))
    decisive = _decisive(files, settings, classnames)
    decisive |= {"code": code, "retrainings": retrainings}
    decisive["notes"] = [sha256(note) for note in model_notes]
    cause = digest_of([json.dumps(decisive, sort_keys=True)])
    new = dict(zip(ids.to_pylist(), content, strict=True))
    if Path(output).is_file():
        before = tables.read(output, tables.TRAINING_IMAGES)
        described = tables.read_metadata(output, TrainingImagesMetadata)
        old = dict(zip(*(column.to_pylist() for column in before.columns), strict=True))
        alike = len(old.items() & new.items())
        most = max(len(old), len(new))
        if described.cause == cause and most - alike <= retrain_share * most:
            log.info("Trained models stay: %d of %d images are as before.", alike, most)
            return
        log.info("Trainings are due: %d of %d images are as before.", alike, most)
    identity = digest_of([cause, *itertools.chain.from_iterable(new.items())])
    metadata = TrainingImagesMetadata(cause, identity)
    columns = {"image_id": ids, "content": pa.array(content, pa.binary(16))}
    tables.write(output, columns, tables.TRAINING_IMAGES, metadata)
    log.info("Listed %d images.", len(ids))


def _content(
    files: TrainingFiles, settings: FinetuneSettings, table: pa.Table
) -> Iterator[bytes]:
    """Yield a digest of what a training learns of each image: its pixels, label and caption."""
    ids = table["image_id"]
    captions: Iterable[str] = itertools.repeat("", len(ids))
    if files.image_captions:
        path = files.image_captions
        captions = tables.Strings(
            tables.lookup_column(path, tables.CAPTIONS, "id", "caption", ids)
        )
    labels = labels_of(files, settings.labels, ids).tolist()
    checksums = table["checksum"].to_pylist()
    for checksum, label, caption in zip(checksums, labels, captions, strict=True):
        yield DIGEST(checksum + f"{label} {caption}".encode()).digest()


def _decisive(
    files: TrainingFiles, settings: FinetuneSettings, classnames: list[str]
) -> dict[str, Any]:
    """Return what decides a training beside its images, as JSON has it."""
    written = tables.read_metadata(files.images, IndexMetadata).written_names
    decisive: dict[str, Any] = {
        "settings": settings.model_dump(exclude={"compute", "fold"}),
        "classnames": classnames,
        "written_names": written,
        "captions": [],
        "answers": {},
    }
    if local := hub_names.local_clip(settings.clip.model_dump()):
        decisive["model"] = fingerprint(local)
    for path in filter(None, (files.image_captions, files.group_captions)):
        described = tables.read_metadata(path, CaptionsMetadata)
        asked = (described.source, described.prompt, described.layout, described.groups)
        decisive["captions"].append(repr(asked))
    if settings.labels == "fused":
        answers = read_fusion_report(str(files.fusion_report)).answers
        decisive["answers"] = {"images": answers.images, "checking": answers.checking}
    return decisive
