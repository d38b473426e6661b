"""Labels of training images by zero-shot scores, image prototypes and votes. Not in the paper.

`fusion` has the model, and `predictors` reads what it is made of.

Letters: N training images, C classes, D embedding width.
"""

import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.holdout import judging
from latteclip.labels.answers import LabelledRows, read_labelled
from latteclip.labels.fusion import OTHER, Fusion, fuse
from latteclip.labels.guarantees import checked_sentence, confidence_sequence
from latteclip.labels.label_sources import CentredFeatures, Votes
from latteclip.labels.predictors import FusionSettings, IndividualLabels, read_predictors

log = logging.getLogger(__name__)


def fuse_labels(
    images_path: str,
    pseudo_labels_path: str,
    class_embeddings_path: str,
    settings: FusionSettings,
    output: str,
    prototypes_output: str,
    votes_output: str | None = None,
    *,
    image_captions_path: str | None = None,
    class_scores_path: str | None = None,
    answers_path: str | None = None,
    eyes_paths: Sequence[str] = (),
    eyes_prototypes_output: str | None = None,
    device: str,
    threads: int,
) -> None:
    """Write FUSED_LABELS for every image that is not in the test split, and a classifier.

    The classifier pools zero-shot scores and image prototypes, and needs no caption. Labels of the
    dataset are not read.

    Raises:
        UserError: an input lacks an image or does not belong to the others.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"]
    if len(table) == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    known = read_predictors(
        image_ids,
        classnames,
        settings,
        *(pseudo_labels_path, class_embeddings_path),
        image_captions_path=image_captions_path,
        class_scores_path=class_scores_path,
        eyes_paths=eyes_paths,
        device=device,
        threads=threads,
    )
    images, votes, others, described = known.images, known.votes, known.others, known.described
    scale = described["logit_scale"]
    labelled = read_labelled(answers_path, table, classnames) if answers_path else None
    names = [tables.read_metadata(path, "image_id")["model"] for path in eyes_paths]
    fusion = fuse(images, votes, others, labelled=labelled)
    save_classifier(prototypes_output, images.classifier(fusion.weights, scale), described)
    if eyes_prototypes_output is not None:
        joint = _joint_classifier((images, *others), fusion, scale)
        save_classifier(eyes_prototypes_output, joint, {**described, "eyes": names})
    summary = _summary(fusion, known.individual, names)
    if labelled is not None:
        summary["answers"] = _summary_of_answers(labelled, fusion, image_ids, classnames)
    columns = _columns(image_ids, known.individual, fusion)
    tables.write(output, columns, tables.FUSED_LABELS, {**described, **summary})
    log.info(
        "%d %s vote, of which %.1f %% agree with the calibrated zero-shot labels (p-value %.3f: "
        "they %s). %d labels changed; latteclip labels show says more.",
        *(summary["voting"], summary["votes"], 100 * summary["agreement"]),
        fusion.parameters.test.p_value,
        "count" if summary["corroborated"] else "are ignored",
        summary["changed"],
    )
    if votes_output is not None:
        metadata = {name: summary[name] for name in ("votes", "corroborated")}
        metadata |= {"classnames": classnames, "leaked": known.leaked}
        _write_votes(votes_output, image_ids, votes, fusion, metadata, with_joint=bool(others))


def _write_votes(
    path: str,
    image_ids: pa.ChunkedArray,
    votes: Votes,
    fusion: Fusion,
    metadata: dict[str, Any],
    *,
    with_joint: bool,
) -> None:
    judges = torch.from_numpy(judging(tables.Strings(image_ids))) & votes.has
    vote = fusion.parameters.classes(votes.probabilities(judges)).float()
    columns = {
        "image_id": image_ids.filter(pa.array(judges.numpy())),
        "vote": tables.list_column(vote.numpy()),
        "head": _column(fusion.head[judges]),
        "joint_head": _column(fusion.joint_head[judges]),
    }
    schema = tables.VOTES_EYES if with_joint else tables.VOTES
    tables.write(path, {name: columns[name] for name in schema.names}, schema, metadata)


def _joint_classifier(
    models: Sequence[CentredFeatures], fusion: Fusion, scale: float
) -> Classifier:
    """Return the classifier of the features of all models, side by side."""
    each = [
        model.classifier(weights, scale)
        for model, weights in zip(models, fusion.joint_weights, strict=True)
    ]
    weights = torch.cat([part.weights for part in each], dim=1)
    return Classifier.of(weights, torch.stack([part.bias for part in each]).sum(dim=0))


def _columns(
    image_ids: pa.ChunkedArray, individual: dict[str, IndividualLabels], fusion: Fusion
) -> dict[str, Any]:
    """Return the columns of FUSED_LABELS."""
    calibrated = fusion.individual_labels["zero_shot"]
    columns = {field.name: pa.nulls(len(image_ids), field.type) for field in tables.FUSED_LABELS}
    columns |= {
        "image_id": image_ids,
        "calibrated_label": _column(calibrated),
        "fused_label": _column(fusion.labels),
        "fused_confidence": pa.array(fusion.confidence.numpy()),
    }
    if "images" in fusion.individual_labels:
        columns["image_label"] = _column(fusion.individual_labels["images"])
    for name, (labels, confidence) in individual.items():
        columns[f"{name}_label"] = _column(torch.where(confidence > 0, labels, calibrated))
        columns[f"{name}_confidence"] = pa.array(confidence.numpy())
    return columns


def _column(labels: torch.Tensor) -> pa.Array:
    return pa.array(labels.int().numpy())


def _summary(
    fusion: Fusion, individual: dict[str, IndividualLabels], eyes: Sequence[str]
) -> dict[str, Any]:
    """Return what was learned of votes and predictors, for the metadata."""
    name, (labels, confidence) = list(individual.items())[-1]
    parameters, calibrated = fusion.parameters, fusion.individual_labels["zero_shot"]
    has, test = confidence > 0, parameters.test
    n = int(has.sum())
    summary: dict[str, Any] = {
        "votes": "class scores" if name == "lmm" else "captions",
        "voting": n,
        "agreement": int((labels == calibrated)[has].sum()) / max(1, n),
        "corroborated": test.significant,
        "corroboration": {
            "images": test.images,
            "zero_shot": test.zero_shot,
            "p_value": test.p_value,
        },
        "weights": {
            "zero_shot": parameters.zero_shot,
            "images": parameters.images[0],
            "texts": parameters.texts,
        },
        "explained_share": parameters.explained_share,
        "independence": parameters.independence,
        "gains": {key: gain for key, gain in fusion.gains.items() if not key.startswith(OTHER)},
        "changed": int((fusion.labels != calibrated).sum()),
    }
    of_eyes = [
        {
            "model": model,
            "weight": parameters.images[1 + i] if test.significant else 0.0,
            "gain": fusion.gains.get(f"{OTHER}{i}", 0.0),
            "agreement": test.others[i],
            "p_value": test.p_values[i],
        }
        for i, model in enumerate(eyes)
    ]
    return summary | ({"eyes": of_eyes} if eyes else {})


def _summary_of_answers(
    labelled: LabelledRows, fusion: Fusion, image_ids: pa.ChunkedArray, classnames: Sequence[str]
) -> dict[str, Any]:
    """Return the answers and how right the labels are by them, for the metadata."""
    names = [
        " or ".join(classnames[c] for c in shares.nonzero()[:, 0]) or None
        for shares in labelled.shares
    ]
    ids = image_ids.take(pa.array(labelled.rows.numpy())).to_pylist()
    found: dict[str, Any] = {"images": dict(zip(ids, names, strict=True))}
    if (checked := fusion.checked) is None:
        return found
    n, right = len(image_ids), int(checked.right.sum())
    taught = len(labelled.rows) - len(checked.rows)
    ends = confidence_sequence(right, len(checked.rows), n - taught)
    shares = (right / len(checked.rows), *ends)
    value, low, high = ((taught + share * (n - taught)) / n for share in shares)
    found["checked"] = {
        **{"answers": len(checked.rows), "value": value, "low": low, "high": high},
        "image_id": image_ids.take(pa.array(checked.rows.numpy())).to_pylist(),
        "confidence": checked.confidence.tolist(),
        "right": checked.right.tolist(),
        "classifiers": {
            name: {"confidence": head.confidence.tolist(), "right": head.right.tolist()}
            for name, head in checked.heads.items()
        },
    }
    log.info("Labels %s.", checked_sentence(found["checked"]))
    return found
