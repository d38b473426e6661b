"""Label training images by `LabelModel`, which is not in the paper."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from latteclip.clip.classifier import Classifier, classify, load_classifier, save_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.holdout import held_out_for_choice
from latteclip.core.tables import (
    ClassesMetadata,
    IndexMetadata,
    VotesMetadata,
    VotesTableMetadata,
)
from latteclip.labels.fusion_report import (
    Check,
    CheckedLabels,
    FusionReport,
    LabellerReport,
    PersonAnswers,
    write_fusion_report,
)
from latteclip.labels.guarantees import Bools, Interval, share_right
from latteclip.labels.label_inputs import (
    LabelFiles,
    LabelInputs,
    LabellerTable,
    read_answers,
)
from latteclip.labels.label_model import Labeller, LabelModel, LinearHead
from latteclip.labels.votes import NO_VOTE, ZERO_SHOT, Answers, Floats, Ints

log = logging.getLogger(__name__)
MIN_WEIGHT = 0.05  # of votes that compare classifiers
ENOUGH_TO_TEACH = 10  # answers and examples, for the choice of a model
SILENT = Labeller(accuracy=None, weight=0.0, answers_needed=0)
LEAKED = "the captioner was given the zero-shot labels"


def adapt_zero_shot(files: LabelFiles, output: str) -> None:
    """Write the zero-shot classifier, adapted to the training images by `LabelModel`."""
    table, classnames = _training_images(files.images)
    known = LabelInputs.read(files, table["image_id"], classnames)
    model = known.fit()
    _save(output, known, model.heads_[0])
    log.info("Adapted %d classes to %d images.", len(classnames), len(table))


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
    table, classnames = _training_images(files.images)
    known = LabelInputs.read(
        files, table["image_id"], classnames, labellers_files, image_encoders_paths
    )
    answers = read_answers(files.answers, table, classnames)
    model = known.fit(answers)
    _save(prototypes_output, known, model.heads_[0])
    if encoders_prototypes_output is not None:
        joint = model.heads_[-1]
        _save(encoders_prototypes_output, known, joint, image_encoders=known.encoders)
    labels = {name: one.first.astype(np.int32) for name, one in known.votes.items()}
    adapted, _ = load_classifier(str(files.adapted), classnames=classnames)
    features = torch.from_numpy(known.features[0][: known.n])
    adapted_labels = classify(features, adapted, 1)[0][:, 0].numpy()
    has_vote = np.zeros(known.n, dtype=bool)
    for voted in known.votes.values():
        has_vote |= voted.has
    fused = model.labels_[: known.n]
    columns: dict[str, Any] = {
        field.name: pa.nulls(known.n, field.type) for field in tables.FUSED_LABELS
    }
    columns |= {
        "image_id": known.image_ids,
        "adapted_label": adapted_labels,
        "image_label": model.heads_[0].labels[: known.n],
        "fused_label": fused,
        "fused_confidence": model.confidence_[: known.n],
        "labeller_labels": tables.list_column(
            np.array([*labels.values()], np.int32).reshape(len(labels), known.n).T
        ),
    }
    for one in labellers_files:
        if one.column is not None:
            has = labels[one.name] != NO_VOTE
            columns[f"{one.column}_label"] = np.where(has, labels[one.name], adapted_labels)
            columns[f"{one.column}_confidence"] = known.votes[one.name].shares.max(axis=1)
    tables.write(output, columns, tables.FUSED_LABELS, ClassesMetadata(classnames))
    texts = LabellerTable(ZERO_SHOT, ZERO_SHOT, "")
    report = FusionReport(
        classnames=classnames,
        written_names=tables.read_metadata(files.images, IndexMetadata).written_names,
        model=known.described["model"],
        pretrained=known.described.get("pretrained"),
        labellers=[
            _labeller(one, known.votes[one.name].has, model, report_output)
            for one in labellers_files
        ],
        zero_shot=_labeller(texts, np.ones(known.n, bool), model, report_output),
        votes=_title(labellers_files),
        voting=int(has_vote.sum()),
        reason=model.reason_,
        is_checked=model.is_checked_,
        changed=int((fused != adapted_labels).sum()),
        image_encoders=known.encoders,
        answers=_person_answers(known, model, answers),
        examples=len(known.examples),
        without_evidence=[classnames[label] for label in model.without_evidence_],
    )
    write_fusion_report(report_output, report)
    for sentence in report.sentences(known.n):
        log.info("%s", sentence)
    reason = _why_unfit(labellers_files, report)
    is_taught = len(report.answers.images) + report.examples >= ENOUGH_TO_TEACH
    about = VotesMetadata(classnames, report.votes, reason, is_taught)
    _write_votes(votes_output, known, model, has_vote, about)


def _training_images(images_path: str) -> tuple[pa.Table, list[str]]:
    table, classnames = tables.read_unlabelled(images_path, training=True)
    if len(table) == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    return table, classnames


def _save(output: str, known: LabelInputs, head: LinearHead, **described: Any) -> None:
    """Write a classifier whose scores are logits over the factor of CLIP's cosines."""
    scale = known.described["logit_scale"]
    parts = (
        torch.from_numpy(np.array(part / scale)) for part in (head.coef, head.intercept)
    )
    save_classifier(output, Classifier.of(*parts), known.described | described)


def _write_votes(
    output: str,
    known: LabelInputs,
    model: LabelModel,
    has_vote: Bools,
    metadata: VotesMetadata,
) -> None:
    """Write what the labellers say of images that compare classifiers, and what these say."""
    rows = np.flatnonzero(held_out_for_choice(tables.Strings(known.image_ids)) & has_vote)
    columns = {
        "image_id": known.image_ids.take(pa.array(rows)),
        "vote": tables.list_column(model.vote_probabilities(rows).astype(np.float32)),
        "head": model.heads_[0].labels[rows],
        "joint_head": model.heads_[-1].labels[rows],
    }
    tables.write(output, columns, tables.VOTES, metadata)


def _why_unfit(labellers: Sequence[LabellerTable], report: FusionReport) -> str:
    """Return why votes cannot compare classifiers, "" where they can."""
    if not labellers:
        return "there is no labeller beside CLIP"
    for one in labellers:
        if one.kind != "captions":
            continue
        if tables.read_metadata(one.table, VotesTableMetadata).leaked:
            return LEAKED
    if not any(one.weight > MIN_WEIGHT for one in report.labellers):
        return f"the images do not predict the {report.votes}"
    return ""


def _title(labellers: Sequence[LabellerTable]) -> str:
    """Return what messages call the votes."""
    if not labellers:
        return "votes"
    if len(labellers) > 1:
        return f"votes of {len(labellers)} labellers"
    one = labellers[0]
    if one.kind == "captions":
        return "captions"
    return "class scores" if one.column else f"votes of {one.name}"


def _labeller(
    one: LabellerTable, has_vote: Bools, model: LabelModel, report_output: str
) -> LabellerReport:
    """Return what the votes of a labeller are worth, given which images [N] it has them about."""
    learned = model.labellers_.get(one.name, SILENT)
    folder = Path(report_output).parent
    return LabellerReport(
        name=one.name,
        kind=one.kind,
        table=os.path.relpath(one.table, folder) if one.table else None,
        votes=int(has_vote.sum()),
        weight=learned.weight,
        accuracy=learned.accuracy,
        answers_needed=learned.answers_needed,
    )


def _person_answers(
    known: LabelInputs, model: LabelModel, answers: Answers
) -> PersonAnswers:
    """Return the answers, and the accuracy of the labels by those about drawn images."""
    ids = known.image_ids.take(pa.array(answers.rows)).to_pylist()
    images = {
        image_id: known.classnames[shares.argmax()] if shares.any() else None
        for image_id, shares in zip(ids, answers.shares, strict=True)
    }
    if not answers.drawn.any():
        return PersonAnswers(images)
    drawn = answers.select(answers.drawn)
    labels = _check(drawn, model.held_out_labels_, model.held_out_confidence_)
    methods = ("image_prototypes", "image_prototypes_encoders")
    checked = CheckedLabels(
        right=labels_right(known.n, answers, np.array(labels.right)),
        image_id=known.image_ids.take(pa.array(drawn.rows)).to_pylist(),
        labels=labels,
        classifiers={
            name: _check(drawn, head.held_out.argmax(axis=1), head.held_out.max(axis=1))
            for name, head in zip(methods, model.heads_, strict=False)
        },
    )
    return PersonAnswers(images, checked)


def _check(drawn: Answers, labels: Ints, confidence: Floats) -> Check:
    right = drawn.shares[np.arange(len(labels)), labels] > 0
    return Check(confidence.tolist(), right.tolist())


def labels_right(n: int, answers: Answers, right: Bools) -> Interval:
    """Return the share of right labels of N images, once answers have replaced labels.

    `right` [J]: whether the labels of the drawn images were right without their answers.
    """
    of_class: Bools = np.asarray(answers.shares.any(axis=1))
    taught = ~answers.drawn
    return share_right(
        n,
        len(right),
        int(right.sum()),
        right=int((of_class & taught).sum()),
        wrong=int((~of_class & taught).sum()),
        unsure=answers.unsure_chosen,
        drawn_unsure=answers.unsure_drawn,
        corrected=int((~right & of_class[answers.drawn]).sum()),
    )
