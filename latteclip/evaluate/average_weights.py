"""Make a model between the pretrained CLIP and the mean of its trainings. Not in the paper.

Weights on the line between both are often better than either end (Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models", arXiv 2109.01903), and so is the mean of several trainings of one
pretrained model (the same, "Model soups", arXiv 2203.05482). A linear discriminant of the features
by the fused labels classifies.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load_file

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, Features, classify
from latteclip.clip.clip_config import WEIGHTS
from latteclip.clip.encode import encode_files
from latteclip.core import devices, tables
from latteclip.core.files import replacing
from latteclip.core.holdout import Fold, left_out
from latteclip.evaluate.results import (
    MISSING,
    RunFiles,
    read_evaluated_images,
    write_run,
)
from latteclip.labels.discriminant import fit_discriminant
from latteclip.labels.fusion_report import read_fusion_report
from latteclip.labels.votes import Bools, Ints, Votes
from latteclip.train.settings import TrainingMetadata

log = logging.getLogger(__name__)
Weights = Mapping[str, torch.Tensor]  # of a network, by their names


@dataclass(frozen=True)
class TrainingResult:
    """The files of a training, and the training images that it left out."""

    model: str  # folder
    history: str
    fold: Fold


def average_weights(
    images_path: str,
    pretrained: str,
    fused_labels_path: str,
    fusion_report_path: str,
    trainings: Sequence[TrainingResult],
    model_output: str,
    history_output: str,
    *,
    mixing: float,
    precision: str,
    dataset: str,
    method: str,
    seed: int,
    predictions_output: str,
    metrics_output: str,
    train_predictions_output: str,
    device: str,
    threads: int,
) -> None:
    """Write the model at the share `mixing` of the way from the pretrained CLIP to the trainings.

    Their weights are averaged first. A training that collapsed is left out, unless all did. The
    history is that of the first training. The classifier learns from the fused labels, but from no
    answer that checks them. An image that a training left out is classified by the model on the way
    to that training, and by a classifier that did not learn from the image.
    """
    where = devices.pick(device, threads)
    pairs = [
        (each, tables.read_metadata(each.history, TrainingMetadata))
        for each in trainings
    ]
    used = [pair for pair in pairs if "collapsed" not in pair[1].flags] or pairs
    model = clips.load_finetuned(used[0][0].model, where, precision)
    images, _ = tables.read_unlabelled(images_path, training=True)
    learner = _Learner(
        model,
        load_file(Path(pretrained, WEIGHTS)),
        mixing,
        Labels.read(fused_labels_path, fusion_report_path, images),
    )
    ids = tables.Strings(images["image_id"])
    predicted = np.full(len(ids), MISSING)
    means: dict[str, torch.Tensor] = {}
    for number, (each, _) in enumerate(used, 1):
        # The network begins with those of the first training.
        weights = (
            learner.copy() if number == 1 else load_file(Path(each.model, WEIGHTS))
        )
        for name, tensor in weights.items():
            mean = means.setdefault(name, tensor.clone())
            if mean.is_floating_point():  # counters of BatchNorm are whole numbers
                mean += (tensor - mean) / number
        learner.take(weights)
        features = learner.encode(images, threads)
        is_out = left_out(ids, each.fold)
        if is_out.any():
            classifier = learner.classifier(features, ~is_out)
            predicted[is_out] = _best(features, is_out, classifier)
    if len(used) > 1:
        learner.take(means)
        features = learner.encode(images, threads)
    classifier = learner.classifier(features, np.ones(len(images), dtype=bool))
    # No training saw them.
    is_drawn = np.isin(np.asarray(ids), used[0][1].drawn) & (predicted == MISSING)
    if is_drawn.any():
        predicted[is_drawn] = _best(features, is_drawn, classifier)
    with replacing(model_output) as folder:
        clips.save_finetuned(
            model.clip, classifier, model.classnames, model.class_templates, folder
        )
    log.info(
        "Averaged the weights of %d of %d trainings, and took them at %g of the way from the "
        "pretrained model.",
        len(used),
        len(trainings),
        mixing,
    )
    first, of_first = used[0]
    flags = sorted({*of_first.flags, "ours"})
    metadata = replace(of_first, flags=flags, averaged=len(used))
    tables.write(
        history_output, tables.read(first.history), tables.HISTORY, metadata
    )
    evaluated, classnames = read_evaluated_images(images_path)
    if not evaluated["image_id"].equals(images["image_id"]):
        features = learner.encode(evaluated, threads)
    ranked = classify(features, classifier, tables.TOPK)[0].numpy()
    run = RunFiles(
        method, seed, metrics_output, train_predictions_output, predictions_output
    )
    is_held_out = predicted != MISSING
    held_out = (
        images["image_id"].filter(pa.array(is_held_out)),
        predicted[is_held_out],
    )
    write_run(evaluated, classnames, ranked, held_out, flags, dataset, run)


def _best(features: Features, rows: Bools, classifier: Classifier) -> Ints:
    """Return the best class [n] of some images, of which there is at least one."""
    best, _ = classify(features[torch.from_numpy(rows)], classifier, 1)
    return best[:, 0].numpy()


@dataclass(frozen=True)
class Labels:
    """The fused labels of N training images."""

    probabilities: Votes  # [N] of the likeliest classes
    is_known: Bools  # [N] whether there are some, and no answer checks them

    @classmethod
    def read(cls, path: str, report_path: str, images: pa.Table) -> "Labels":
        """Read the labels of the images from FUSED_LABELS, and what checks them from its report."""
        table = tables.read(path, ["image_id", *tables.SOFT_LABELS])
        rows = tables.find_rows(images["image_id"], table["image_id"], path)
        classes, shares = (
            tables.from_list_column(table[name])[rows]
            for name in tables.SOFT_LABELS
        )
        probabilities = Votes(classes, shares)
        checking = pa.array(read_fusion_report(report_path).checking, pa.string())
        is_checking = pc.is_in(images["image_id"], checking).to_numpy()
        return cls(probabilities, probabilities.has & ~is_checking)


class _Learner:
    """A model that takes the weights of trainings, and classifiers of its features."""

    def __init__(
        self,
        model: clips.FinetunedModel,
        pretrained: Weights,
        mixing: float,
        labels: Labels,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.mixing = mixing
        self.labels = labels

    def copy(self) -> Weights:
        """Return the weights of the network, on the CPU."""
        state = self.model.clip.model.state_dict()
        return {name: tensor.cpu().clone() for name, tensor in state.items()}

    def take(self, trained: Weights) -> None:
        """Give the model the weights on the way to those that were trained."""
        mixed = {
            name: torch.lerp(self.pretrained[name].float(), weights, self.mixing)
            if weights.is_floating_point()
            else weights
            for name, weights in trained.items()
        }
        self.model.clip.model.load_state_dict(mixed)

    def encode(self, images: pa.Table, threads: int) -> Features:
        """Return the features [N, D] of images."""
        paths = tables.Strings(images["path"])
        return encode_files(self.model.clip, paths, threads)

    def classifier(self, features: Features, is_seen: Bools) -> Classifier:
        """Return the discriminant of features [N, D], by the labels of the images that it sees."""
        used = self.labels.is_known & is_seen
        labels, n_classes = self.labels.probabilities, len(self.model.classnames)
        parts = fit_discriminant(features, labels, n_classes, used)
        # Scores are logits over the factor of CLIP's cosines.
        scaled = (
            torch.from_numpy(part / self.model.logit_scale).float()
            for part in parts
        )
        return Classifier.of(*scaled)
