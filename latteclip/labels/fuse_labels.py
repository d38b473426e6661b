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
    LabellerLabelsMetadata,
    VotesMetadata,
)
from latteclip.labels.fusion_report import (
    UNCHECKED,
    Check,
    CheckedLabels,
    FusionReport,
    LabellerReport,
    PersonAnswers,
    write_fusion_report,
)
from latteclip.labels.guarantees import Bools, Interval, share_right
from latteclip.labels.label_inputs import LabelInputs, LabellerTable, read_answers
from latteclip.labels.label_model import Answers, Floats, Ints, Labeller, LabelModel
from latteclip.labels.vote_tables import VotesTableMetadata, first_classes
from latteclip.labels.votes import NO_VOTE, ZERO_SHOT

log = logging.getLogger(__name__)
MIN_WEIGHT = 0.05  # of votes that compare classifiers
SILENT = Labeller(accuracy=None, identified=False, weight=0.0, answers_needed=0)
LEAKED = "the captioner was given the zero-shot labels"


def adapt_zero_shot(
    images_path: str, pseudo_labels_path: str, class_embeddings_path: str, output: str
) -> None:
    """Write the zero-shot classifier, adapted to the training images by `LabelModel`."""
    table, classnames = _training_images(images_path)
    known = LabelInputs.read(
        table["image_id"], classnames, pseudo_labels_path, class_embeddings_path, []
    )
    model = known.fit()
    save_classifier(
        output, _classifier(known, model.coef_, model.intercept_), known.described
    )
    log.info("Adapted %d classes to %d images.", len(classnames), len(table))


def fuse_labels(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    adapted_path: str,
    output: str,
    report_output: str,
    prototypes_output: str,
    votes_output: str,
    labeller_labels_output: str,
    *,
    labellers_files: Sequence[LabellerTable],
    answers_path: str | None = None,
    examples_path: str | None = None,
    image_encoders_paths: Sequence[str] = (),
    encoders_prototypes_output: str | None = None,
) -> None:
    """Write FUSED_LABELS and VOTES of the images that are not in the test split, and a classifier.

    The report is that of `fusion_report`, and LABELLER_LABELS has the class of each image by each
    labeller. The dataset's labels are not read.
    """
    table, classnames = _training_images(images_path)
    image_ids = table["image_id"]
    known = LabelInputs.read(
        image_ids,
        classnames,
        pseudo_labels_path,
        class_embeddings_path,
        labellers_files,
        image_encoders_paths,
        examples_path,
    )
    answers = Answers.of(None, len(classnames))
    if answers_path:
        answers = read_answers(answers_path, table, classnames)
    model = known.fit(answers)
    _save_classifiers(known, model, prototypes_output, encoders_prototypes_output)
    labels = {name: first_classes(votes) for name, votes in known.votes.items()}
    _write_labeller_labels(labeller_labels_output, image_ids, classnames, labels)
    adapted = _adapted(adapted_path, known, classnames)
    fused, confidence, unnamed = labels_with_evidence(known, model, labels, answers)
    columns = {
        field.name: pa.nulls(known.n, field.type) for field in tables.FUSED_LABELS
    } | {
        "image_id": image_ids,
        "adapted_label": pa.array(adapted, pa.int32()),
        "image_label": pa.array(np.asarray(model.head_labels_)[: known.n], pa.int32()),
        "fused_label": pa.array(fused, pa.int32()),
        "fused_confidence": pa.array(confidence, pa.float32()),
    }
    for one in labellers_files:
        if one.column is not None:
            has = labels[one.name] != NO_VOTE
            own = np.where(has, labels[one.name], adapted)
            columns[f"{one.column}_label"] = pa.array(own, pa.int32())
            shares = known.votes[one.name].probabilities.max(axis=1)
            columns[f"{one.column}_confidence"] = pa.array(shares, pa.float32())
    tables.write(output, columns, tables.FUSED_LABELS, ClassesMetadata(classnames))
    index = tables.read_metadata(images_path, IndexMetadata)
    has_vote = np.any([of_one != NO_VOTE for of_one in labels.values()], axis=0)
    votes = {name: int((of_one != NO_VOTE).sum()) for name, of_one in labels.items()}
    texts = LabellerTable(ZERO_SHOT, ZERO_SHOT, "")
    report = FusionReport(
        classnames=classnames,
        written_names=index.written_names,
        model=known.described["model"],
        pretrained=known.described.get("pretrained"),
        labellers=[
            _labeller(one, votes[one.name], model, report_output) for one in labellers_files
        ],
        zero_shot=_labeller(texts, known.n, model, report_output),
        votes=_title(labellers_files),
        voting=int(has_vote.sum()),
        reason=model.reason_,
        is_checked=model.is_checked_,
        changed=int((fused != adapted).sum()),
        image_encoders=known.encoders,
        answers=_answers(answers, known, model, image_ids, classnames),
        examples=len(known.examples),
        without_evidence=[classnames[label] for label in unnamed],
    )
    write_fusion_report(report_output, report)
    _log(report, known.n)
    _write_votes(votes_output, image_ids, known, model, has_vote, labellers_files, report)


def _training_images(images_path: str) -> tuple[pa.Table, list[str]]:
    table, classnames = tables.read_unlabelled(images_path, training=True)
    if len(table) == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    return table, classnames


def _classifier(known: LabelInputs, weights: Floats, bias: Floats) -> Classifier:
    """Return a classifier whose scores are logits over the factor of CLIP's cosines."""
    scale = known.described["logit_scale"]
    return Classifier.of(
        torch.from_numpy(np.array(weights / scale)),
        torch.from_numpy(np.array(bias / scale)),
    )


def _save_classifiers(
    known: LabelInputs, model: LabelModel, output: str, encoders_output: str | None
) -> None:
    """Write the classifier of CLIP's features, and that of all encoders side by side."""
    own = _classifier(known, model.coef_, model.intercept_)
    save_classifier(output, own, known.described)
    if encoders_output is not None:
        joint = _classifier(known, model.joint_coef_, model.joint_intercept_)
        described = {**known.described, "image_encoders": known.encoders}
        save_classifier(encoders_output, joint, described)


def _adapted(path: str, known: LabelInputs, classnames: Sequence[str]) -> Ints:
    """Return the classes [N] by the adapted zero-shot classifier."""
    classifier, _ = load_classifier(path, classnames=classnames)
    features = torch.from_numpy(known.features[0][: known.n])
    return np.asarray(classify(features, classifier, 1)[0][:, 0].numpy())


def labels_with_evidence(
    known: LabelInputs, model: LabelModel, labels: dict[str, Ints], answers: Answers
) -> tuple[Ints, Floats, list[int]]:
    """Return labels and confidences [N], and classes that nothing but class texts names.

    These have no labels where labellers have a vote about most images.
    """
    fused, confidence = model.labels_[: known.n], model.confidence_[: known.n]
    votes = np.concatenate([np.zeros(0, np.int32), *labels.values()])
    named = np.bincount(votes[votes != NO_VOTE], minlength=known.n_classes) > 0
    named |= answers.shares.any(axis=0)
    named[known.examples] = True
    covered = np.any([of_one != NO_VOTE for of_one in labels.values()], axis=0)
    unnamed = np.flatnonzero(~named)
    without = np.isin(fused, unnamed)
    if not named.any() or not np.mean(covered) > 0.5 or not without.any():
        return fused, confidence, []
    rows = np.flatnonzero(without)
    shares = model.probabilities(rows)[:, named]
    fused, confidence = fused.copy(), confidence.copy()
    fused[rows] = np.flatnonzero(named)[shares.argmax(axis=1)]
    confidence[rows] = np.minimum(confidence[rows], shares.max(axis=1))
    return fused, confidence, np.intersect1d(unnamed, model.labels_[rows]).tolist()


def _write_labeller_labels(
    output: str, image_ids: pa.ChunkedArray, classnames: list[str], labels: dict[str, Ints]
) -> None:
    columns = {
        "image_id": image_ids,
        "labels": tables.list_column(np.stack([*labels.values()], axis=1)),
    }
    metadata = LabellerLabelsMetadata(classnames, list(labels))
    tables.write(output, columns, tables.LABELLER_LABELS, metadata)


def _write_votes(
    output: str,
    image_ids: pa.ChunkedArray,
    known: LabelInputs,
    model: LabelModel,
    has_vote: Bools,
    labellers: Sequence[LabellerTable],
    report: FusionReport,
) -> None:
    """Write what the labellers say of images that compare classifiers, and what these say."""
    rows = np.flatnonzero(held_out_for_choice(tables.Strings(image_ids)) & has_vote)
    columns: dict[str, Any] = {
        "image_id": image_ids.take(pa.array(rows)),
        "vote": tables.list_column(model.vote_probabilities(rows).astype(np.float32)),
        "head": pa.array(np.asarray(model.head_labels_)[rows], pa.int32()),
    }
    schema = tables.VOTES
    if known.encoders:
        schema = tables.VOTES_ENCODERS
        joint = np.asarray(model.joint_head_labels_)[rows]
        columns["joint_head"] = pa.array(joint, pa.int32())
    reason = _why_unfit(labellers, report)
    metadata = VotesMetadata(report.classnames, report.votes, reason)
    tables.write(output, columns, schema, metadata)


def _why_unfit(labellers: Sequence[LabellerTable], report: FusionReport) -> str:
    """Return why votes cannot compare classifiers, "" where they can."""
    for one in labellers:
        if one.kind == "captions" and _metadata(one).leaked:
            return LEAKED
    if not any(one.weight > MIN_WEIGHT for one in report.labellers):
        return f"the images do not predict the {report.votes}"
    return ""


def _metadata(labeller: LabellerTable) -> VotesTableMetadata:
    return tables.read_metadata(labeller.table, VotesTableMetadata)


def _title(labellers: Sequence[LabellerTable]) -> str:
    """Return what messages call the votes."""
    if len(labellers) > 1:
        return f"votes of {len(labellers)} labellers"
    one = labellers[0]
    if one.kind == "captions":
        return "captions"
    return "class scores" if one.column else f"votes of {one.name}"


def _labeller(
    one: LabellerTable, votes: int, model: LabelModel, report_output: str
) -> LabellerReport:
    """Return what so many votes of a labeller are worth."""
    folder = Path(report_output).parent
    learned = model.labellers_.get(one.name, SILENT)
    return LabellerReport(
        name=one.name,
        kind=one.kind,
        table=os.path.relpath(one.table, folder) if one.table else None,
        votes=votes,
        weight=learned.weight,
        accuracy=learned.accuracy,
        answers_needed=learned.answers_needed,
    )


def _answers(
    answers: Answers,
    known: LabelInputs,
    model: LabelModel,
    image_ids: pa.ChunkedArray,
    classnames: Sequence[str],
) -> PersonAnswers:
    """Return the answers, and the accuracy of the labels by them."""
    ids = image_ids.take(pa.array(answers.rows)).to_pylist()
    images: dict[str, str | None] = {}
    for image_id, shares in zip(ids, answers.shares, strict=True):
        named = " or ".join(classnames[label] for label in np.flatnonzero(shares))
        images[image_id] = named or None
    if not answers.drawn.any():
        return PersonAnswers(images)
    drawn = answers.select(answers.drawn)
    labels = Check(
        model.held_out_confidence_.tolist(), _is_right(drawn, model.held_out_labels_)
    )
    classifiers = {"image_prototypes": model.held_out_head_}
    if known.encoders:
        classifiers["image_prototypes_encoders"] = model.held_out_joint_head_
    checks = {
        name: Check(
            probabilities.max(axis=1).tolist(),
            _is_right(drawn, probabilities.argmax(axis=1)),
        )
        for name, probabilities in classifiers.items()
    }
    right = labels_right(known.n, answers, np.array(labels.right))
    names = np.array(ids, object)[answers.drawn].tolist()
    return PersonAnswers(images, CheckedLabels(right, names, labels, checks))


def _is_right(answers: Answers, labels: Ints) -> list[bool]:
    shares = answers.shares[np.arange(len(labels)), labels]
    return [bool(share > 0) for share in shares]


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


def _log(report: FusionReport, n: int) -> None:
    log.info(
        "%d of %d images have %s. %d labels differ from the adapted zero-shot ones; latteclip "
        "labels show says more.",
        report.voting,
        n,
        report.votes,
        report.changed,
    )
    if report.reason:
        log.info("%s", report.reason)
    if not report.is_checked:
        log.info("%s", UNCHECKED)
    if report.without_evidence:
        log.info(
            "No vote, answer or example names %s, so no image has that label.",
            ", ".join(report.without_evidence),
        )
    if report.answers.checked:
        log.info("Labels %s.", report.answers.checked.sentence)
