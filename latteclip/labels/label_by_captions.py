"""Labels that captions and zero-shot scores give together: ours, one step beyond the paper.

How votes are fused is in `fusion`; here they are made, and the labels written.

Letters: N training images, C classes, D embedding width, T texts, U distinct ones, G groups, M
memberships of images in groups.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import load_classifier
from latteclip.core import devices, tables
from latteclip.core.errors import UserError
from latteclip.core.progress import Progress
from latteclip.labels.features import read_features
from latteclip.labels.fusion import DEVIATION, Fusion, fuse, log_probabilities, mean_group_votes

log = logging.getLogger(__name__)
HOW = (
    "Maximum likelihood of the caption votes given the zero-shot scores. Log temperature, class "
    "biases and each class's own deviation in rate and chance have normal priors with a standard "
    f"deviation of {DEVIATION}. Captions count if a model with a temperature and one common rate "
    "beats class-blind votes by more than log(number of votes) in log-likelihood; groups need half "
    "that."
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
    image_captions: str
    group_captions: str


def label_by_captions(
    files: CaptionLabelFiles,
    settings: CaptionLabelSettings,
    output: str,
    *,
    device: str,
    threads: int,
) -> None:
    """Write CAPTION_LABELS for every image that is not in the test split; labels are not read.

    Raises:
        UserError: an input lacks an image or does not belong to the others.
    """
    table, classnames = tables.read_unlabelled(files.images, training=True)
    image_ids = table["image_id"].to_pylist()
    if not image_ids:
        raise UserError(f"{files.images} has no training image; check the dataset's split.")
    classes, described = load_classifier(
        files.class_embeddings,
        classnames=classnames,
        model=settings.model,
        pretrained=settings.pretrained,
    )
    embeddings, scale = classes.weights, described["logit_scale"]  # [C, D]
    # [N, C], in float32 like all tables of that size.
    zero_shot = read_features(files.pseudo_labels, table["image_id"]) @ embeddings.T
    zero_shot.mul_(scale)
    labels = tables.lookup(
        files.pseudo_labels, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids
    )
    captions, prompts = (
        tables.lookup(files.image_captions, tables.CAPTIONS, "id", column, image_ids)
        for column in ("caption", "prompt")
    )
    if len(set(prompts)) > 1:
        log.warning(
            "The captions were asked for with the pseudo-labels in the prompt: they may agree with "
            "the zero-shot labels because they were told them, and then correct few."
        )
    group_captions, groups = tables.read_groups(files.group_captions, image_ids)
    clip = clips.load(
        settings.model, settings.pretrained, devices.pick(device, threads), settings.precision
    )
    votes, rows = _votes(
        [*captions, *group_captions], clip, scale * embeddings, settings.batch_size
    )  # [U + 1, C], [N + G]
    group_of, image_of = _memberships(groups)
    own_rows, group_rows = rows.split([len(captions), len(group_captions)])
    own = votes[own_rows]  # [N, C]
    of_groups = mean_group_votes(votes, group_rows[group_of], image_of, len(image_ids))  # [N, C]
    del votes
    own_labels = torch.tensor(labels)  # [N]
    fusion = fuse(log_probabilities(zero_shot), own, of_groups, own_labels)
    _write(output, table["image_id"], own_labels, own, of_groups, fusion, {**described, "how": HOW})


def _memberships(groups: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Group [M] and image [M] of each membership, counted once."""
    pairs = [
        (group, member) for group, members in enumerate(groups) for member in dict.fromkeys(members)
    ]
    group_of, image_of = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return group_of, image_of


@torch.no_grad()
def _votes(
    captions: Sequence[str | None], clip: clips.Clip, classes: torch.Tensor, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Votes [U + 1, C], softmaxes of the scaled scores, and the row of each caption [T].

    The last row is zero: that of an empty caption. Each distinct caption is encoded once. The
    tokenizer cuts what is too long for the text tower.

    Args:
        classes: [C, D] class embeddings times the logit scale.
    """
    texts = [(caption or "").strip() for caption in captions]
    row_of = {text: row for row, text in enumerate(dict.fromkeys(filter(None, texts)))}
    distinct = list(row_of)
    progress = Progress(len(distinct), "captions")
    votes = torch.zeros(len(distinct) + 1, len(classes))
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        scores = encode.encode_texts(clip, clip.tokenizer(batch)).cpu() @ classes.T
        votes[start : start + len(batch)] = scores.double().softmax(dim=1)
        progress.add(len(batch))
    return votes, torch.tensor([row_of.get(text, len(distinct)) for text in texts])


def _write(
    output: str,
    image_ids: pa.ChunkedArray,
    labels: torch.Tensor,
    votes: torch.Tensor,
    group_votes: torch.Tensor,
    fusion: Fusion,
    described: dict[str, object],
) -> None:
    """Write CAPTION_LABELS, and log in one line what the captions did."""
    voted, grouped = votes.sum(dim=1) > 0, group_votes.sum(dim=1) > 0  # [N]
    caption_labels = torch.where(voted, votes.argmax(dim=1), labels)
    confidence, fused_labels = fusion.log_posterior.max(dim=1)
    if fusion.model is None and fusion.group_rate == 0:
        fused_labels = labels  # ties included
    summary = {
        **_trust(fusion),
        "captions": int(voted.sum()),  # that vote
        "agreement": int((caption_labels == labels)[voted].sum()) / max(1, int(voted.sum())),
        "changed": int((fused_labels != labels).sum()),
    }
    tables.write(
        output,
        {
            "image_id": image_ids,
            "caption_label": pa.array(caption_labels.numpy(), pa.int32()),
            "caption_confidence": pa.array(votes.amax(dim=1).float().numpy()),
            "group_label": pa.array(
                group_votes.argmax(dim=1).numpy(), pa.int32(), mask=~grouped.numpy()
            ),
            "fused_label": pa.array(fused_labels.numpy(), pa.int32()),
            "fused_confidence": pa.array(confidence.exp().float().numpy()),
        },
        tables.CAPTION_LABELS,
        {**described, **summary},
    )
    log.info(
        "%(captions)d captions agree with %(agreement).1f %% of the zero-shot labels "
        "(evidence %(evidence).1f, %(evidence_needed).1f needed): temperature %(temperature).2f, "
        "rate %(rate).2f, group rate %(group_rate).3f; %(changed)d labels changed.",
        {**summary, "agreement": 100 * summary["agreement"]},
    )


def _trust(fusion: Fusion) -> dict[str, Any]:
    """What was learned of the captions, for the metadata and the log."""
    learned: dict[str, Any] = {"temperature": 1.0, "rate": 0.0}
    if fusion.model is not None:
        rates = fusion.model.rate_logits.sigmoid()
        learned = {
            "temperature": fusion.model.log_temperature.exp().item(),
            "rate": rates.mean().item(),
            "class_biases": fusion.model.biases.tolist(),
            "class_rates": rates.tolist(),
            "class_chances": fusion.model.log_chances.exp().tolist(),
            "class_weights": fusion.model.weights().tolist(),
        }
    return {
        **learned,
        "evidence": fusion.evidence,
        "evidence_needed": fusion.needed,
        "group_rate": fusion.group_rate,
        "group_evidence": fusion.group_evidence,
    }
