"""Labels of training images by all witnesses that there are: ours, one step beyond the paper.

How witnesses are weighed is in `fusion`; here votes are made of captions or of class scores, and
labels and classifier are written.

Letters: N training images, C classes, D embedding width, T captions, U distinct ones.
"""

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latteclip.clip import encode, feature_memmap
from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier, save_classifier
from latteclip.clip.feature_memmap import FeatureRows, Features
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.core.holdout import judging
from latteclip.core.terminal import Progress
from latteclip.labels.class_scores import read_class_scores
from latteclip.labels.features import feature_column, read_features
from latteclip.labels.fusion import Fusion, fuse
from latteclip.labels.witnesses import CaptionVotes, Images, ScoreVotes, Votes, parts

log = logging.getLogger(__name__)
HOW = (
    "Calibrated zero-shot scores, prototypes of image features and the votes of captions, or of "
    "class scores in their place, weighed by how well they predict one another; nothing but the "
    "calibrated zero-shot labels where the votes agree with the others no better than votes dealt "
    "out at random."
)


@dataclass(frozen=True)
class CaptionLabelSettings:
    """The CLIP model that reads the captions."""

    model: str
    pretrained: str | None
    batch_size: int  # texts encoded at once
    precision: str = "bf16"


@dataclass(frozen=True)
class CaptionLabelFiles:
    """What the labels are made from."""

    images: str
    pseudo_labels: str
    class_embeddings: str
    image_captions: str | None = None
    class_scores: str | None = None  # where they are given, they vote and not the captions


@dataclass(frozen=True)
class OwnLabels:
    """What captions or class scores say by themselves."""

    labels: torch.Tensor  # [N]
    confidence: torch.Tensor  # [N] float32, its probability; 0 where nothing is said


def label_by_captions(
    files: CaptionLabelFiles,
    settings: CaptionLabelSettings,
    output: str,
    classifier_output: str,
    votes_output: str | None = None,
    *,
    device: str,
    threads: int,
) -> None:
    """Write CAPTION_LABELS for every image that is not in the test split, and a classifier.

    The classifier is what zero-shot scores and image prototypes make together: it needs no caption.
    Votes by which classifiers can be judged go to `votes_output`, a table of VOTES. Labels of the
    dataset are not read.

    Raises:
        UserError: an input lacks an image or does not belong to the others.
    """
    table, classnames = tables.read_unlabelled(files.images, training=True)
    if len(table) == 0:
        raise UserError(f"{files.images} has no training image; check the dataset's split.")
    classes, described = load_classifier(
        files.class_embeddings,
        classnames=classnames,
        model=settings.model,
        pretrained=settings.pretrained,
    )
    scale = described["logit_scale"]
    features = read_features(files.pseudo_labels, table["image_id"])
    images = Images.of(features, classes.weights, scale)
    image_ids = tables.Strings(table["image_id"])
    votes: list[Votes] = []
    own: dict[str, OwnLabels] = {}
    were_told = False
    if files.image_captions is not None:
        clip = clips.load(
            settings.model, settings.pretrained, devices.pick(device, threads), settings.precision
        )
        captions, were_told = _read_captions(files.image_captions, table["image_id"])
        texts, row_of = _encode(captions, clip, settings.batch_size)
        votes.append(CaptionVotes.of(texts, row_of, classes.weights, scale))
        own["caption"] = _captions_alone(texts, row_of, scale * classes.weights)
    if files.class_scores is not None:
        options, scores = map(
            torch.from_numpy,
            read_class_scores(files.class_scores, table["image_id"], len(classnames)),
        )
        votes.append(ScoreVotes.of(options, scores, len(classnames)))
        own["lmm"] = _votes_alone(votes[-1])
    if not votes:
        raise UserError("Nothing votes: give --image-captions or --class-scores.")
    fusion = fuse(images, votes[-1])
    save_classifier(classifier_output, images.classifier(fusion.weights, scale), described)
    summary = _summary(fusion, own)
    _write(output, table["image_id"], own, fusion, {**described, "how": HOW, **summary})
    log.info(_sentence(summary))
    if votes_output is not None:
        judges = torch.from_numpy(judging(image_ids)) & votes[-1].has
        columns = {
            "image_id": table["image_id"].filter(pa.array(judges.numpy())),
            "vote": feature_column(fusion.trust.classes(votes[-1].probabilities(judges)).float()),
            "head": _column(fusion.head[judges]),
        }
        kept = {name: summary[name] for name in ("votes", "corroborated")}
        kept |= {"classnames": classnames, "told": were_told and files.class_scores is None}
        tables.write(votes_output, columns, tables.VOTES, kept)


def _read_captions(path: str, image_ids: pa.ChunkedArray) -> tuple[pa.ChunkedArray, bool]:
    """The caption of each image, null where there is none; whether pseudo-labels were told."""
    captions, prompts = (
        tables.lookup_column(path, tables.CAPTIONS, "id", column, image_ids)
        for column in ("caption", "prompt")
    )
    were_told = pc.count_distinct(prompts, mode="all").as_py() > 1
    if were_told:
        log.warning(
            "The captions were asked for with the pseudo-labels in the prompt: they may agree with "
            "the zero-shot labels because they were told them, and then correct few."
        )
    captions = pc.utf8_trim_whitespace(captions)
    return pc.if_else(pc.equal(captions, ""), None, captions), were_told


@torch.no_grad()
def _encode(
    captions: pa.ChunkedArray, clip: clips.Clip, batch_size: int
) -> tuple[FeatureRows, torch.Tensor]:
    """Features [U + 1, D] of the distinct captions, and the row of each caption [T].

    The last row is zero: that of no caption. The tokenizer cuts what is too long for the text
    tower.
    """
    encoded = pc.dictionary_encode(captions.cast(pa.large_string())).combine_chunks()
    distinct = tables.Strings(pa.chunked_array([encoded.dictionary]))
    row_of = pc.fill_null(encoded.indices, len(distinct)).to_numpy()
    progress = Progress(len(distinct), "captions")
    features = FeatureRows(len(distinct) + 1, clip.config["embed_dim"])
    for rows in feature_memmap.parts(len(distinct), batch_size):
        batch = list(distinct[rows])
        features[rows] = encode.encode_texts(clip, clip.tokenizer(batch)).cpu()
        progress.add(len(batch))
    return features, torch.from_numpy(row_of.astype(np.int64))


def _captions_alone(texts: Features, row_of: torch.Tensor, classes: torch.Tensor) -> OwnLabels:
    """The class that is nearest to each caption [T], whatever is said of other images.

    Args:
        texts: [U + 1, D].
        row_of: [T] rows of `texts`, of which the last one says nothing.
        classes: [C, D] class embeddings times the logit scale.
    """
    scores = (texts[rows].double() @ classes.double().T for rows in parts(len(texts)))
    best = [part.softmax(dim=1).max(dim=1) for part in scores]
    confidence, labels = (torch.cat(column) for column in zip(*best, strict=True))
    confidence[-1] = 0
    return OwnLabels(labels[row_of], confidence[row_of].float())


def _votes_alone(votes: Votes) -> OwnLabels:
    """The class that gets the largest share of the vote of each image."""
    best = [votes.probabilities(rows).max(dim=1) for rows in parts(len(votes.has))]
    confidence, labels = (torch.cat(column) for column in zip(*best, strict=True))
    return OwnLabels(labels, confidence.float())


def _write(
    output: str,
    image_ids: pa.ChunkedArray,
    own: dict[str, OwnLabels],
    fusion: Fusion,
    described: dict[str, object],
) -> None:
    """Write CAPTION_LABELS."""
    calibrated = fusion.said["zero_shot"]
    columns: dict[str, Any] = {
        "image_id": image_ids,
        "calibrated_label": _column(calibrated),
        "image_label": _column(fusion.said.get("images"), len(image_ids)),
        "fused_label": _column(fusion.labels),
        "fused_confidence": pa.array(fusion.confidence.numpy()),
    }
    for name in ("caption", "lmm"):
        labels, confidence = None, pa.nulls(len(image_ids), pa.float32())
        if name in own:
            labels = torch.where(own[name].confidence > 0, own[name].labels, calibrated)
            confidence = pa.array(own[name].confidence.numpy())
        columns |= {
            f"{name}_label": _column(labels, len(image_ids)),
            f"{name}_confidence": confidence,
        }
    tables.write(output, columns, tables.CAPTION_LABELS, described)


def _column(labels: torch.Tensor | None, n: int = 0) -> pa.Array:
    """Labels [N] as a column; n nulls where there are none."""
    return pa.nulls(n, pa.int32()) if labels is None else pa.array(labels.int().numpy())


def _summary(fusion: Fusion, own: dict[str, OwnLabels]) -> dict[str, Any]:
    """What was learned of the witnesses, for the metadata and the log."""
    name, said = list(own.items())[-1]  # that which votes
    trust, calibrated = fusion.trust, fusion.said["zero_shot"]
    voting = said.confidence > 0
    n = max(1, int(voting.sum()))
    return {
        "votes": "class scores" if name == "lmm" else "captions",
        "voting": int(voting.sum()),
        "agreement": int((said.labels == calibrated)[voting].sum()) / n,
        "corroborated": trust.corroboration.found,
        "corroboration": asdict(trust.corroboration),
        "weights": {"zero_shot": trust.zero_shot, "images": trust.images, "texts": trust.texts},
        "rate": trust.rate,
        "independent": trust.independent,
        "gains": fusion.gains,
        "changed": int((fusion.labels != calibrated).sum()),
    }


def _sentence(summary: dict[str, Any]) -> str:
    begin = (
        f"{summary['voting']} {summary['votes']} agree with {summary['agreement']:.1%} of the "
        "calibrated zero-shot labels"
    )
    if not summary["corroborated"]:
        return (
            f"{begin}, and with images and scores no better than in random order (p-value "
            f"{summary['corroboration']['p_value']:.3f}). So they do not count, and the labels are "
            "the calibrated zero-shot ones."
        )
    times = {name: math.exp(gain) for name, gain in summary["gains"].items()}
    return (
        f"{begin}. Zero-shot scores make a vote {times['zero_shot']:.2f} times as likely as the "
        f"frequencies of the classes do, image prototypes {times['images']:.2f} times, both "
        f"{times['both']:.2f} times. {summary['changed']} labels changed."
    )
