"""Average the weights of several trainings. Not in the paper.

Wortsman et al. 2022 ("Model soups") average trainings of one pretrained model, which stay close.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier
from latteclip.clip.encode import class_embeddings
from latteclip.core import devices, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.files import replacing
from latteclip.core.holdout import NO_FOLD, Fold
from latteclip.evaluate.classify import classify_evaluated, classify_left_out
from latteclip.train.settings import TrainingMetadata

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The files of a training, and the training images that it left out."""

    model: str  # folder
    history: str
    fold: Fold = NO_FOLD


def average_weights(
    images_path: str,
    trainings: Sequence[TrainingResult],
    model_output: str,
    history_output: str,
    *,
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
    """Write the model whose weights are the means of those of all trainings, and classify with it.

    Its classifier is the class texts under the averaged text tower. A training that collapsed is
    left out, unless all did. The history is that of the first training. The training images have
    the classes that those trainings predict which left them out.
    """
    where = devices.pick(device, threads)
    described = [tables.read_metadata(each.history, TrainingMetadata) for each in trainings]
    pairs = zip(trainings, described, strict=True)
    sound = [each for each, own in pairs if "collapsed" not in own.flags]
    used = sound or trainings
    first = clips.load_finetuned(used[0].model, torch.device("cpu"))
    ids: list[str] = []
    predicted: list[int] = []
    for number, each in enumerate(used, 1):
        model = clips.load_finetuned(each.model, where, precision)
        _include(model.clip.model, first.clip.model, number)
        # None left out an image of another.
        some_ids, classes = classify_left_out(images_path, model, each.fold, threads)
        ids += some_ids
        predicted += classes
    template = ClassTemplates([first.class_templates.template])
    texts = class_embeddings(first.clip, template, first.classnames)
    with replacing(model_output) as folder:
        clips.save_finetuned(
            first.clip,
            Classifier.of(texts),
            first.classnames,
            first.class_templates,
            folder,
        )
    log.info("Averaged the weights of %d of %d trainings.", len(used), len(trainings))
    history = tables.read(used[0].history)
    of_first = tables.read_metadata(used[0].history, TrainingMetadata)
    flags = sorted({*of_first.flags, "ours"})
    averaged = replace(of_first, flags=flags, averaged=len(used))
    tables.write(history_output, history, tables.HISTORY, averaged)
    classify_evaluated(
        images_path,
        clips.load_finetuned(model_output, where, precision),
        (ids, predicted),
        flags,
        (dataset, method, seed),
        (predictions_output, metrics_output, train_predictions_output),
        threads,
    )


def _include(model: torch.nn.Module, average: torch.nn.Module, number: int) -> None:
    """Turn the average over all models before this one into that over `number` models."""
    weights = model.state_dict()
    for name, mean in average.state_dict().items():
        if mean.is_floating_point():  # counters of BatchNorm are whole numbers
            mean += (weights[name].cpu() - mean) / number
