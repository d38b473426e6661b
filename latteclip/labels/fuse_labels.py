"""Labels of training images by zero-shot scores, image prototypes and votes: ours, not the paper's.

`fusion` has the model, and `predictors` reads what it is made of.

Letters: N training images, C classes, D embedding width.
"""

import logging
import math
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
from latteclip.labels.label_sources import CentredFeatures
from latteclip.labels.predictors import FusionSettings, IndividualLabels, read_predictors

log = logging.getLogger(__name__)
HOW = (
    "Calibrated zero-shot scores, prototypes of image features and the votes of captions, or of "
    "class scores in their place, weighted by how well they predict one another. Where the votes "
    "agree with the others no better than permuted votes, the labels are the calibrated zero-shot "
    "labels."
)


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

    The classifier pools zero-shot scores and image prototypes, and needs no caption. Votes by which
    classifiers can be checked go to `votes_output`, a table of VOTES. Labels of the dataset are not
    read.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table.
        class_embeddings_path: W0.
        settings: of the labels.
        output: the labels.
        prototypes_output: the classifier.
        votes_output: votes by which classifiers can be checked.
        image_captions_path: a CAPTIONS table.
        class_scores_path: a CLASS_SCORES table, which votes in place of the captions.
        answers_path: a person's answers about training images.
        eyes_paths: IMAGE_FEATURES tables of image models beside CLIP.
        eyes_prototypes_output: the classifier of the features of all models.
        device: cpu, cuda or auto.
        threads: CPU threads.

    Raises:
        UserError: an input lacks an image or does not belong to the others.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    if len(table) == 0:
        raise UserError(f"{images_path} has no training image; check the dataset's split.")
    known = read_predictors(
        table["image_id"],
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
    labelled = None
    if answers_path is not None:
        labelled = read_labelled(answers_path, table, classnames)
    names = [tables.read_metadata(path, "image_id")["model"] for path in eyes_paths]
    fusion = fuse(images, votes, others, labelled=labelled)
    save_classifier(prototypes_output, images.classifier(fusion.weights, scale), described)
    if eyes_prototypes_output is not None:
        joint = _joint_classifier((images, *others), fusion, scale)
        save_classifier(eyes_prototypes_output, joint, {**described, "eyes": names})
    summary = _summary(fusion, known.individual, names)
    if labelled is not None:
        summary["answers"] = _summary_of_answers(labelled, fusion, table["image_id"], classnames)
        log.info(_sentence_of_answers(summary["answers"]))
    columns = _columns(table["image_id"], known.individual, fusion)
    tables.write(output, columns, tables.FUSED_LABELS, {**described, "how": HOW, **summary})
    log.info(_sentence(summary))
    if votes_output is not None:
        drawn = torch.from_numpy(judging(tables.Strings(table["image_id"])))
        judges = drawn & votes.has
        vote = fusion.parameters.classes(votes.probabilities(judges)).float()
        columns = {
            "image_id": table["image_id"].filter(pa.array(judges.numpy())),
            "vote": tables.list_column(vote.numpy()),
            "head": _column(fusion.head[judges]),
        }
        schema = tables.VOTES
        if others:
            columns["joint_head"], schema = _column(fusion.joint.head[judges]), tables.VOTES_EYES
        metadata = {name: summary[name] for name in ("votes", "corroborated")}
        metadata |= {"classnames": classnames, "leaked": known.leaked}
        tables.write(votes_output, columns, schema, metadata)


def _joint_classifier(
    models: Sequence[CentredFeatures], fusion: Fusion, scale: float
) -> Classifier:
    """Return the classifier of the features of all models, side by side."""
    parts = [
        model.classifier(weights, scale)
        for model, weights in zip(models, fusion.joint.weights, strict=True)
    ]
    weights = torch.cat([part.weights for part in parts], dim=1)
    return Classifier.of(weights, torch.stack([part.bias for part in parts]).sum(dim=0))


def _columns(
    image_ids: pa.ChunkedArray, individual: dict[str, IndividualLabels], fusion: Fusion
) -> dict[str, Any]:
    """Return the columns of FUSED_LABELS."""
    calibrated = fusion.individual_labels["zero_shot"]
    columns: dict[str, Any] = {
        "image_id": image_ids,
        "calibrated_label": _column(calibrated),
        "image_label": _column(fusion.individual_labels.get("images"), len(image_ids)),
        "fused_label": _column(fusion.labels),
        "fused_confidence": pa.array(fusion.confidence.numpy()),
    }
    for name in ("caption", "lmm"):
        labels, confidence = None, pa.nulls(len(image_ids), pa.float32())
        if name in individual:
            own = individual[name]
            labels = torch.where(own.confidence > 0, own.labels, calibrated)
            confidence = pa.array(own.confidence.numpy())
        columns[f"{name}_label"] = _column(labels, len(image_ids))
        columns[f"{name}_confidence"] = confidence
    return columns


def _column(labels: torch.Tensor | None, n: int = 0) -> pa.Array:
    """Return labels [N] as a column, or n nulls without labels."""
    return pa.nulls(n, pa.int32()) if labels is None else pa.array(labels.int().numpy())


def _summary(
    fusion: Fusion, individual: dict[str, IndividualLabels], eyes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what was learned of votes and predictors, for the metadata and the log."""
    name, voting = list(individual.items())[-1]
    parameters, calibrated = fusion.parameters, fusion.individual_labels["zero_shot"]
    has = voting.confidence > 0
    n, test = int(has.sum()), parameters.test
    summary: dict[str, Any] = {
        "votes": "class scores" if name == "lmm" else "captions",
        "voting": n,
        "agreement": int((voting.labels == calibrated)[has].sum()) / max(1, n),
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
    if eyes:
        summary["eyes"] = [
            {
                "model": model,
                "weight": parameters.images[1 + i] if test.significant else 0.0,
                "gain": fusion.gains.get(f"{OTHER}{i}", 0.0),
                "agreement": test.others[i],
                "p_value": test.p_values[i],
            }
            for i, model in enumerate(eyes)
        ]
    return summary


def _summary_of_answers(
    labelled: LabelledRows, fusion: Fusion, image_ids: pa.ChunkedArray, classnames: Sequence[str]
) -> dict[str, Any]:
    """Return the answers and how right the labels are by them, for the metadata."""
    names = [
        " or ".join(classnames[c] for c in shares.nonzero()[:, 0]) if shares.any() else None
        for shares in labelled.shares
    ]
    ids = image_ids.take(pa.array(labelled.rows.numpy())).to_pylist()
    found: dict[str, Any] = {"images": dict(zip(ids, names, strict=True))}
    if fusion.checked is not None:
        checked, n = fusion.checked, len(image_ids)
        taught = len(labelled.rows) - len(checked.rows)
        right = int(checked.right.sum())
        ends = confidence_sequence(right, len(checked.rows), n - taught)
        shares = (right / len(checked.rows), *ends)
        value, low, high = ((taught + share * (n - taught)) / n for share in shares)
        found["checked"] = {
            **{"answers": len(checked.rows), "value": value, "low": low, "high": high},
            "image_id": image_ids.take(pa.array(checked.rows.numpy())).to_pylist(),
            "confidence": checked.confidence.tolist(),
            "right": checked.right.tolist(),
        }
    return found


def _sentence_of_answers(answers: dict[str, Any]) -> str:
    begin = f"A person answered about {len(answers['images'])} images."
    if "checked" not in answers:
        return f"{begin} None of them was drawn to check the labels."
    return f"{begin} Labels {checked_sentence(answers['checked'])}."


def _sentence(summary: dict[str, Any]) -> str:
    begin = (
        f"{summary['voting']} {summary['votes']} agree with {summary['agreement']:.1%} of the "
        "calibrated zero-shot labels."
    )
    if not summary["corroborated"]:
        return (
            f"{begin} They agree with images and scores no better than permuted votes do (p-value "
            f"{summary['corroboration']['p_value']:.3f}). So the votes are ignored, and the labels "
            "are the calibrated zero-shot ones."
        )
    times = {name: math.exp(gain) for name, gain in summary["gains"].items()}
    eyes = "".join(
        f", those of {one['model']} {math.exp(one['gain']):.2f} times (weight {one['weight']:.2f})"
        for one in summary.get("eyes", [])
    )
    return (
        f"{begin} Compared with class frequencies, zero-shot scores make a vote "
        f"{times['zero_shot']:.2f} times as likely, image prototypes {times['images']:.2f} times"
        f"{eyes}, all {times['both']:.2f} times. {summary['changed']} labels changed."
    )
