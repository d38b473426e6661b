"""Label training images by the model of `fusion`, which is not in the paper."""

import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.holdout import held_out_for_choice
from latteclip.core.metadata import (
    ClassesMetadata,
    EncoderMetadata,
    IndexMetadata,
    VotesMetadata,
)
from latteclip.labels import fusion_report
from latteclip.labels.answers import read_labelled
from latteclip.labels.fusion import FUSED, OTHER, Fusion, fuse
from latteclip.labels.fusion_report import FusionReport
from latteclip.labels.guarantees import confidence_sequence
from latteclip.labels.label_sources import LabelledRows, Votes
from latteclip.labels.predictors import Predictors, read_predictors
from latteclip.labels.voters.base import FusionSettings

log = logging.getLogger(__name__)
PROBABILITY_DIGITS = 6


def fuse_labels(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    settings: FusionSettings,
    output: str,
    report_output: str,
    prototypes_output: str,
    votes_output: str,
    *,
    voter: str,
    voter_table_path: str,
    answers_path: str | None = None,
    image_encoders_paths: Sequence[str] = (),
    encoders_prototypes_output: str | None = None,
    device: str,
    threads: int,
) -> None:
    """Write FUSED_LABELS and VOTES of the images that are not in the test split, and a classifier.

    The classifier pools zero-shot scores and image prototypes. The report is that of
    `fusion_report`. The dataset's labels are not read. `voter` is the name of a module of
    latteclip/labels/voters, which reads its votes from a table.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"]
    if len(table) == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    known = read_predictors(
        image_ids,
        classnames,
        settings,
        pseudo_labels_path,
        class_embeddings_path,
        voter,
        voter_table_path,
        image_encoders_paths=image_encoders_paths,
        device=device,
        threads=threads,
    )
    images = known.images
    described = known.described
    scale = known.described["logit_scale"]
    labelled = read_labelled(answers_path, table, classnames) if answers_path else None
    fusion = fuse(images, known.ballot.votes, known.others, labelled=labelled)
    save_classifier(prototypes_output, images.classifier(fusion.head, scale), described)
    names = [
        tables.read_metadata(path, EncoderMetadata).model for path in image_encoders_paths
    ]
    if encoders_prototypes_output is not None:
        pairs = zip((images, *known.others), fusion.joint_heads, strict=True)
        heads = [model.classifier(head, scale) for model, head in pairs]
        # The joint classifier reads the features of all models, side by side.
        weights = torch.cat([head.weights for head in heads], dim=1)
        joint = Classifier.of(
            weights, torch.stack([head.bias for head in heads]).sum(dim=0)
        )
        save_classifier(
            encoders_prototypes_output, joint, {**described, "image_encoders": names}
        )
    answers = fusion_report.PersonAnswers()
    if labelled is not None:
        answers = _answers(labelled, fusion, image_ids, classnames)
    columns = _columns(image_ids, known, fusion, voter)
    tables.write(output, columns, tables.FUSED_LABELS, ClassesMetadata(classnames))
    index = tables.read_metadata(images_path, IndexMetadata)
    report = _report(fusion, known, names, index, settings, voter, answers)
    fusion_report.write_fusion_report(report_output, report)
    effect = "count" if report.corroborated else "are ignored"
    log.info(
        "%d %s vote, and %s. %d labels changed; latteclip labels show says more.",
        report.voting,
        report.votes,
        effect,
        report.changed,
    )
    metadata = VotesMetadata(
        classnames, report.votes, report.corroborated, known.ballot.leaked
    )
    columns = _votes(image_ids, known.ballot.votes, fusion)
    schema = tables.VOTES_ENCODERS if image_encoders_paths else tables.VOTES
    tables.write(votes_output, {n: columns[n] for n in schema.names}, schema, metadata)


def _votes(image_ids: pa.ChunkedArray, votes: Votes, fusion: Fusion) -> dict[str, Any]:
    judges = torch.from_numpy(held_out_for_choice(tables.Strings(image_ids))) & votes.has
    vote = fusion.parameters.classes(votes.probabilities(judges)).float()
    return {
        "image_id": image_ids.filter(pa.array(judges.numpy())),
        "vote": tables.list_column(vote.numpy()),
        "head": _column(fusion.predicted[judges]),
        "joint_head": _column(fusion.joint_predicted[judges]),
    }


def _columns(
    image_ids: pa.ChunkedArray, known: Predictors, fusion: Fusion, voter: str
) -> dict[str, Any]:
    adapted = fusion.individual_labels["zero_shot"]
    confidence = known.ballot.confidence
    columns = {
        field.name: pa.nulls(len(image_ids), field.type) for field in tables.FUSED_LABELS
    }
    columns |= {
        "image_id": image_ids,
        "adapted_label": _column(adapted),
        f"{voter}_label": _column(
            torch.where(confidence > 0, known.ballot.labels, adapted)
        ),
        f"{voter}_confidence": pa.array(confidence.numpy()),
        "fused_label": _column(fusion.labels),
        "fused_confidence": pa.array(fusion.confidence.numpy()),
    }
    if "images" in fusion.individual_labels:
        columns["image_label"] = _column(fusion.individual_labels["images"])
    return columns


def _column(labels: torch.Tensor) -> pa.Array:
    return pa.array(labels.int().numpy())


def _report(
    fusion: Fusion,
    known: Predictors,
    image_encoders: Sequence[str],
    index: IndexMetadata,
    settings: FusionSettings,
    voter: str,
    answers: fusion_report.PersonAnswers,
) -> FusionReport:
    learned = fusion.parameters
    test = learned.test
    adapted = fusion.individual_labels["zero_shot"]
    has_vote = known.ballot.confidence > 0
    n = int(has_vote.sum())
    gains = None
    if fusion.gains:
        gains = fusion_report.Gains(
            both=fusion.gains["both"],
            zero_shot=fusion.gains["zero_shot"],
            images=fusion.gains["images"],
        )
    return FusionReport(
        classnames=index.classnames,
        written_names=index.written_names,
        model=settings.clip.model,
        pretrained=settings.clip.pretrained,
        voter=voter,
        votes=known.ballot.title,
        voting=n,
        agreement=int((known.ballot.labels == adapted)[has_vote].sum()) / max(1, n),
        corroborated=test.significant,
        corroboration=fusion_report.Corroboration(
            test.images, test.zero_shot, test.p_value
        ),
        weights=fusion_report.Weights(learned.zero_shot, learned.images[0], learned.texts),
        explained_share=learned.explained_share,
        independence=learned.independence,
        gains=gains,
        changed=int((fusion.labels != adapted).sum()),
        image_encoders=[
            fusion_report.EncoderReport(
                model=model,
                weight=learned.images[1 + number] if test.significant else 0.0,
                gain=fusion.gains.get(f"{OTHER}{number}", 0.0),
                agreement=test.others[number],
                p_value=test.p_values[number],
            )
            for number, model in enumerate(image_encoders)
        ],
        answers=answers,
    )


def _answers(
    labelled: LabelledRows,
    fusion: Fusion,
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
) -> fusion_report.PersonAnswers:
    """Return the answers, and how right the labels are by them."""
    names: list[str | None] = []
    for shares in labelled.shares:
        labels = shares.nonzero()[:, 0].tolist()
        named = " or ".join(classnames[label] for label in labels)
        names.append(named or None)
    ids = image_ids.take(pa.array(labelled.rows.numpy()))
    images = dict(zip(ids.to_pylist(), names, strict=True))
    if not fusion.checked:
        return fusion_report.PersonAnswers(images)
    checks = {
        name: fusion_report.Check(
            one.confidence.tolist(),
            one.right.tolist(),
            one.probabilities.double().numpy().round(PROBABILITY_DIGITS).tolist(),
        )
        for name, one in fusion.checked.items()
    }
    labels = checks.pop(FUSED)
    n = labelled.n
    answers = len(labels.right)
    right = sum(labels.right)
    taught = len(labelled.rows) - answers
    shares = (right / answers, *confidence_sequence(right, answers, n - taught))
    value, low, high = ((taught + share * (n - taught)) / n for share in shares)
    checked = fusion_report.CheckedLabels(
        answers=answers,
        value=value,
        low=low,
        high=high,
        image_id=ids.filter(pa.array(labelled.drawn.numpy())).to_pylist(),
        labels=labels,
        classifiers=checks,
    )
    log.info("Labels %s.", checked.sentence)
    return fusion_report.PersonAnswers(images, checked)
