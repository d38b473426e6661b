"""Label training images by `LabelModel`, which is not in the paper."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from latteclip.clip.classifier import (
    Classifier,
    classify,
    load_classifier,
    save_classifier,
)
from latteclip.core import tables
from latteclip.core.files import write_record
from latteclip.core.holdout import held_out_for_choice
from latteclip.core.tables import ClassesMetadata, EncoderMetadata, VotesMetadata
from latteclip.labels.fusion_report import (
    LABELS,
    Check,
    FusionReport,
    LabellerReport,
)
from latteclip.labels.guarantees import MIN_ANSWERS, Interval, share_right
from latteclip.labels.image_classes import LinearHead
from latteclip.labels.label_inputs import (
    LabelFiles,
    LabelInputs,
    LabellerTable,
    read_answers,
)
from latteclip.labels.label_model import LabelModel
from latteclip.labels.labellers import Labeller
from latteclip.labels.votes import ZERO_SHOT, Answers, Floats, Ints

log = logging.getLogger(__name__)
MIN_WEIGHT = 0.05  # of votes that compare classifiers
SILENT = Labeller(accuracy=None, weight=0.0, answers_needed=0)
LEAKED = "the captioner was given the zero-shot labels"
# The classifiers of the label model, of CLIP's features and of those of all encoders.
CLASSIFIERS = ("image_prototypes", "image_prototypes_encoders")


def adapt_zero_shot(files: LabelFiles, output: str) -> None:
    """Write the zero-shot classifier, adapted to the training images by `LabelModel`."""
    known = LabelInputs.read(
        files, *tables.read_unlabelled(files.images, training=True)
    )
    _save(output, known, known.fit().heads_[0])
    log.info("Adapted %d classes to %d images.", len(known.classnames), known.n)


def fuse_labels(
    files: LabelFiles,
    labellers_files: Sequence[LabellerTable],
    output: str,
    report_output: str,
    prototypes_output: str,
    votes_output: str,
    *,
    image_encoders_paths: Sequence[str] = (),
    encoders_prototypes_output: str | None = None,
) -> None:
    """Write FUSED_LABELS and VOTES of the images that are not in the test split, and a classifier.

    The report is that of `fusion_report`. The dataset's labels are not read. With image encoders,
    there is also a classifier of the features of all encoders side by side.
    """
    images, classnames = tables.read_unlabelled(files.images, training=True)
    known = LabelInputs.read(
        files, images, classnames, labellers_files, image_encoders_paths
    )
    answers = read_answers(files.answers, images, classnames)
    model = known.fit(answers)
    _save(prototypes_output, known, model.heads_[0])
    if encoders_prototypes_output is not None:
        encoders = [
            tables.read_metadata(path, EncoderMetadata).model
            for path in image_encoders_paths
        ]
        joint = model.heads_[-1]
        _save(encoders_prototypes_output, known, joint, image_encoders=encoders)
    labels = _label_columns(files, labellers_files, known, model)
    tables.write(output, labels, tables.FUSED_LABELS, ClassesMetadata(classnames))

    def relative(path: str) -> str:
        return os.path.relpath(path, Path(report_output).parent)

    drawn = answers.select(answers.drawn)
    names_of_answers = [
        classnames[shares.argmax()] if shares.any() else None
        for shares in answers.shares
    ]
    report = FusionReport(
        classnames=classnames,
        labellers=[
            LabellerReport(
                one.name,
                one.kind,
                relative(one.table),
                int(known.votes[one.name].has.sum()),
                **vars(model.labellers_.get(one.name, SILENT)),
            )
            for one in labellers_files
        ],
        zero_shot=LabellerReport(
            ZERO_SHOT,
            ZERO_SHOT,
            None,
            known.n,
            **vars(model.labellers_[ZERO_SHOT]),
        ),
        reason=model.reason_,
        is_checked=model.is_checked_,
        image_encoders=[*map(relative, image_encoders_paths)],
        examples=len(known.examples),
        without_evidence=[classnames[label] for label in model.without_evidence_],
        answers=dict(zip(known.ids(answers.rows), names_of_answers, strict=True)),
        checking=known.ids(drawn.rows),
        checks=_checks(model, drawn),
        labels_right=(
            labels_right(known.n, answers, model.held_out_labels_)
            if len(drawn.rows) >= MIN_ANSWERS
            else None
        ),
    )
    write_record(report_output, report)
    log.info("Labelled %d images.", known.n)
    unfit = _unfit(labellers_files, report)
    _write_votes(votes_output, known, model, drawn, unfit)


def _save(
    output: str, known: LabelInputs, head: LinearHead, **described: Any
) -> None:
    """Write a classifier whose scores are logits over the factor of CLIP's cosines."""
    scale = known.described["logit_scale"]
    parts = (
        torch.from_numpy(np.array(part / scale))
        for part in (head.coef, head.intercept)
    )
    save_classifier(output, Classifier.of(*parts), known.described | described)


def _label_columns(
    files: LabelFiles,
    labellers: Sequence[LabellerTable],
    known: LabelInputs,
    model: LabelModel,
) -> dict[str, Any]:
    """Return the columns of FUSED_LABELS."""
    n = known.n
    adapted, _ = load_classifier(str(files.adapted))
    best, _ = classify(torch.from_numpy(known.features[0][:n]), adapted, 1)
    adapted_labels = best[:, 0].numpy()
    columns: dict[str, Any] = {
        field.name: pa.nulls(n, field.type) for field in tables.FUSED_LABELS
    }
    every = np.empty((n, len(labellers)), np.int32)
    for k, one in enumerate(labellers):
        votes = known.votes[one.name]
        every[:, k] = votes.first
        if one.column is not None:
            by_one = np.where(votes.has, votes.first, adapted_labels)
            columns[f"{one.column}_label"] = by_one
            columns[f"{one.column}_confidence"] = votes.shares.max(axis=1)
    return columns | {
        "image_id": known.images["image_id"],
        "adapted_label": adapted_labels,
        "image_label": model.heads_[0].labels[:n],
        "fused_label": model.labels_[:n],
        "fused_confidence": model.confidence_[:n],
        "fused_topk_labels": tables.list_column(model.posterior_.options[:n]),
        "fused_topk_probabilities": tables.list_column(
            model.posterior_.shares[:n]
        ),
        "labeller_labels": tables.list_column(every),
    }


def _write_votes(
    output: str, known: LabelInputs, model: LabelModel, drawn: Answers, unfit: str
) -> None:
    """Write votes about images that compare classifiers, and what those of `fuse_labels` say.

    Votes are those of the labellers if these are fit, and a person's answers about drawn images,
    for which the classifiers are without the answer.
    """
    is_compared = held_out_for_choice(tables.Strings(known.images["image_id"]))
    is_compared[drawn.rows] = True
    rows = np.flatnonzero(is_compared)
    votes = np.zeros((len(rows), len(known.classnames)), np.float32)
    if not unfit:
        votes[:] = model.vote_probabilities(rows)
    answered = np.searchsorted(rows, drawn.rows)
    votes[answered] = drawn.shares
    heads = {}
    for name, head in {
        "head": model.heads_[0],
        "joint_head": model.heads_[-1],
    }.items():
        heads[name] = head.labels[rows]
        heads[name][answered] = head.held_out.argmax(axis=1)
    metadata = VotesMetadata(known.classnames, "" if votes.any() else unfit)
    columns = {
        "image_id": known.ids(rows),
        "vote": tables.list_column(votes),
        **heads,
    }
    tables.write(output, columns, tables.VOTES, metadata)


def _unfit(labellers: Sequence[LabellerTable], report: FusionReport) -> str:
    """Return why votes cannot compare classifiers, "" where they can."""
    if not labellers:
        return "there is no labeller beside CLIP"
    if any(one.leaked for one in labellers):
        return LEAKED
    if all(one.weight <= MIN_WEIGHT for one in report.labellers):
        return "the images do not predict the votes"
    return ""


def _checks(model: LabelModel, drawn: Answers) -> dict[str, Check]:
    """Return how right labels and classifiers are by answers about drawn images."""

    def check(labels: Ints, confidence: Floats) -> Check:
        right = drawn.shares[np.arange(len(labels)), labels] > 0
        return list(zip(confidence.tolist(), right.tolist(), strict=True))

    by_heads = {
        name: check(head.held_out.argmax(axis=1), head.held_out.max(axis=1))
        for name, head in zip(CLASSIFIERS, model.heads_, strict=False)
    }
    return {
        LABELS: check(model.held_out_labels_, model.held_out_confidence_),
        **by_heads,
    }


def labels_right(n: int, answers: Answers, held_out: Ints) -> Interval:
    """Return the share of right labels of N images, once answers have replaced labels.

    `held_out` [J] are the labels of the drawn images without their answers, of which there are
    some.
    """
    drawn = answers.select(answers.drawn)
    is_right = drawn.shares[np.arange(len(held_out)), held_out] > 0
    chosen_right = answers.select(~answers.drawn).shares.any(axis=1)
    return share_right(
        n,
        len(is_right),
        int(is_right.sum()),
        right=int(chosen_right.sum()),
        wrong=int((~chosen_right).sum()),
        unsure=answers.unsure_chosen,
        drawn_unsure=answers.unsure_drawn,
        corrected=int((~is_right & drawn.shares.any(axis=1)).sum()),
    )
