"""Label training images by the model of `fusion`, which is not in the paper."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
    VoterLabelsMetadata,
    VotesMetadata,
)
from latteclip.labels import fusion_report
from latteclip.labels.answers import read_labelled
from latteclip.labels.examples import Examples, read_examples
from latteclip.labels.fusion import FUSED, OTHER, Fusion
from latteclip.labels.fusion_report import FusionReport
from latteclip.labels.guarantees import confidence_sequence
from latteclip.labels.label_sources import LabelledRows, Votes
from latteclip.labels.predictors import Predictors, read_predictors
from latteclip.labels.voter_estimates import ZERO_SHOT, Tests, fuse_counted, gains_of_voters
from latteclip.labels.voter_model import (
    JointFusion,
    JointModel,
    first_labels,
    fuse_voters,
)
from latteclip.labels.voters.base import FusionSettings, VoterTable

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
    voter_labels_output: str,
    *,
    voters_files: Sequence[VoterTable],
    answers_path: str | None = None,
    examples_path: str | None = None,
    image_encoders_paths: Sequence[str] = (),
    encoders_prototypes_output: str | None = None,
    device: str,
    threads: int,
) -> None:
    """Write FUSED_LABELS and VOTES of the images that are not in the test split, and a classifier.

    The classifier pools zero-shot scores and image prototypes. The report is that of
    `fusion_report`, and VOTER_LABELS has the class of each image by each voter. The dataset's
    labels are not read.
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
        voters_files,
        image_encoders_paths=image_encoders_paths,
        device=device,
        threads=threads,
    )
    labelled = read_labelled(answers_path, table, classnames) if answers_path else None
    votes = {name: ballot.votes for name, ballot in known.ballots.items()}
    names = [
        tables.read_metadata(path, EncoderMetadata).model for path in image_encoders_paths
    ]
    examples = None
    if examples_path is not None:
        models = [settings.clip.model, *names]
        examples = read_examples(examples_path, classnames, models)
    joint, estimates = fuse_counted(
        partial(_fused, known, labelled, examples),
        votes,
        labelled,
        like_images=[one.name for one in voters_files if one.kind == ZERO_SHOT],
    )
    fusion = joint.fusion
    described = known.described
    own = known.images.classifier(fusion.head, described["logit_scale"])
    save_classifier(prototypes_output, own, described)
    if encoders_prototypes_output is not None:
        described = {**described, "image_encoders": names}
        save_classifier(encoders_prototypes_output, _of_encoders(known, fusion), described)
    answers = fusion_report.PersonAnswers()
    if labelled is not None:
        answers = _answers(labelled, fusion, image_ids, classnames)
    columns = _columns(image_ids, known, fusion, voters_files)
    tables.write(output, columns, tables.FUSED_LABELS, ClassesMetadata(classnames))
    _write_voter_labels(voter_labels_output, image_ids, classnames, votes)
    index = tables.read_metadata(images_path, IndexMetadata)
    report = _report(fusion, known, names, index, settings, answers)
    report = replace(
        report,
        uncounted=list(joint.uncounted),
        voters=_voters(joint, voters_files, estimates, Path(report_output).parent),
        zero_shot=estimates.get(ZERO_SHOT),
        examples=len(examples.labels) if examples else 0,
    )
    fusion_report.write_fusion_report(report_output, report)
    effect = "count" if report.corroborated else "are ignored"
    log.info(
        "%d images have %s, which %s. %d labels changed; latteclip labels show says more.",
        report.voting,
        report.votes,
        effect,
        report.changed,
    )
    if joint.uncounted:
        log.info("%s", fusion_report.why_uncounted(joint.uncounted))
    leaked = any(ballot.leaked for ballot in known.ballots.values())
    metadata = VotesMetadata(classnames, report.votes, report.corroborated, leaked)
    columns = _votes(image_ids, votes, joint)
    schema = tables.VOTES_ENCODERS if image_encoders_paths else tables.VOTES
    tables.write(votes_output, {n: columns[n] for n in schema.names}, schema, metadata)


def _of_encoders(known: Predictors, fusion: Fusion) -> Classifier:
    """Return the classifier that reads the features of all image encoders, side by side."""
    scale = known.described["logit_scale"]
    models = (known.images, *known.others)
    heads = [
        model.classifier(head, scale)
        for model, head in zip(models, fusion.joint_heads, strict=True)
    ]
    weights = torch.cat([head.weights for head in heads], dim=1)
    bias = torch.stack([head.bias for head in heads]).sum(dim=0)
    return Classifier.of(weights, bias)


def _write_voter_labels(
    output: str,
    image_ids: pa.ChunkedArray,
    classnames: list[str],
    votes: Mapping[str, Votes],
) -> None:
    labels = [first_labels(of_voter).numpy() for of_voter in votes.values()]
    columns = {
        "image_id": image_ids,
        "labels": tables.list_column(np.stack(labels, axis=1)),
    }
    metadata = VoterLabelsMetadata(classnames, list(votes))
    tables.write(output, columns, tables.VOTER_LABELS, metadata)


def _fused(
    known: Predictors,
    labelled: LabelledRows | None,
    examples: Examples | None,
    votes: Mapping[str, Votes],
    tests: Tests | None,
) -> JointFusion:
    """Return the labels of the images, which learn from answers and from examples."""
    if examples is None:
        return fuse_voters(known.images, votes, known.others, labelled, tests)
    images = examples.add_features(0, known.images)
    others = [
        examples.add_features(number, model)
        for number, model in enumerate(known.others, start=1)
    ]
    every = {name: examples.add_votes(one) for name, one in votes.items()}
    n = len(known.images.centred)
    answers = examples.add_answers(labelled, n)
    joint = fuse_voters(images, every, others, answers, tests)
    return replace(joint, fusion=joint.fusion.of_first(n))


def _votes(
    image_ids: pa.ChunkedArray, votes: Mapping[str, Votes], joint: JointFusion
) -> dict[str, Any]:
    fusion = joint.fusion
    model = joint.model
    first = next(iter(votes.values()))
    n = len(image_ids)
    has = model.votes.has[:n] if fusion.parameters.test.significant else first.has
    judges = torch.from_numpy(held_out_for_choice(tables.Strings(image_ids))) & has
    if isinstance(model, JointModel):
        rows = judges.nonzero()[:, 0]
        vote = model.vote_log_likelihood(rows, fusion.parameters).softmax(dim=1)
    else:
        counting = [votes[name] for name, voter in joint.voters.items() if voter]
        alone = counting[0] if counting else first
        vote = fusion.parameters.classes(alone.probabilities(judges))
    return {
        "image_id": image_ids.filter(pa.array(judges.numpy())),
        "vote": tables.list_column(vote.float().numpy()),
        "head": _column(fusion.predicted[judges]),
        "joint_head": _column(fusion.joint_predicted[judges]),
    }


def _columns(
    image_ids: pa.ChunkedArray,
    known: Predictors,
    fusion: Fusion,
    voters: Sequence[VoterTable],
) -> dict[str, Any]:
    adapted = fusion.individual_labels["zero_shot"]
    columns = {
        field.name: pa.nulls(len(image_ids), field.type) for field in tables.FUSED_LABELS
    }
    columns |= {
        "image_id": image_ids,
        "adapted_label": _column(adapted),
        "fused_label": _column(fusion.labels),
        "fused_confidence": pa.array(fusion.confidence.numpy()),
    }
    if "images" in fusion.individual_labels:
        columns["image_label"] = _column(fusion.individual_labels["images"])
    for voter in voters:
        if voter.column is not None:
            ballot = known.ballots[voter.name]
            labels = torch.where(ballot.confidence > 0, ballot.labels, adapted)
            columns[f"{voter.column}_label"] = _column(labels)
            columns[f"{voter.column}_confidence"] = pa.array(ballot.confidence.numpy())
    return columns


def _column(labels: torch.Tensor) -> pa.Array:
    return pa.array(labels.int().numpy())


def _report(
    fusion: Fusion,
    known: Predictors,
    image_encoders: Sequence[str],
    index: IndexMetadata,
    settings: FusionSettings,
    answers: fusion_report.PersonAnswers,
) -> FusionReport:
    learned = fusion.parameters
    test = learned.test
    adapted = fusion.individual_labels["zero_shot"]
    ballots = list(known.ballots.values())
    has_vote = torch.stack([ballot.confidence > 0 for ballot in ballots])  # [V, N]
    agree = torch.stack([ballot.labels == adapted for ballot in ballots])
    votes = ballots[0].title if len(ballots) == 1 else f"votes of {len(ballots)} voters"
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
        voters=[],
        zero_shot=None,
        votes=votes,
        voting=int(has_vote.any(dim=0).sum()),
        agreement=int(agree[has_vote].sum()) / max(1, int(has_vote.sum())),
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


def _voters(
    joint: JointFusion,
    voters: Sequence[VoterTable],
    estimates: Mapping[str, fusion_report.VoterEstimate],
    folder: Path,
) -> list[fusion_report.VoterReport]:
    """Return what the votes of each voter are worth, with its table relative to a folder."""
    gains = gains_of_voters(joint)
    reports = []
    for voter in voters:
        known = joint.voters[voter.name]
        estimate = estimates[voter.name]
        one = fusion_report.VoterReport(
            name=voter.name,
            kind=voter.kind,
            module=voter.module,
            table=os.path.relpath(voter.table, folder),
            votes=estimate.votes,
            weight=known.weight if known else None,
            family=known.family if known else None,
            gain=gains[voter.name],
            estimate=estimate,
        )
        reports.append(one)
    return reports


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
    answers = len(labels.right)
    right = sum(labels.right)
    taught = len(labelled.rows) - answers
    n = labelled.n
    others = n - taught
    shares = (right / answers, *confidence_sequence(right, answers, others))
    # Answers also correct the wrong labels that they checked.
    sure = taught + answers - right
    value, low, high = ((sure + share * others) / n for share in shares)
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
