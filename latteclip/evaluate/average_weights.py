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
from latteclip.core.holdout import Fold
from latteclip.evaluate.classify import classify_evaluated, classify_left_out
from latteclip.evaluate.results import RunFiles
from latteclip.train.settings import TrainingMetadata

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The files of a training, and the training images that it left out."""

    model: str  # folder
    history: str
    fold: Fold


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
    pairs = [
        (each, tables.read_metadata(each.history, TrainingMetadata))
        for each in trainings
    ]
    used = [pair for pair in pairs if "collapsed" not in pair[1].flags] or pairs
    ids: list[str] = []
    predicted: list[int] = []
    means: dict[str, torch.Tensor] = {}
    for number, (each, _) in enumerate(used, 1):
        model = clips.load_finetuned(each.model, where, precision)
        # None left out an image of another.
        some_ids, classes = classify_left_out(
            images_path, model, each.fold, threads
        )
        ids += some_ids
        predicted += classes
        for name, weights in model.clip.model.state_dict().items():
            mean = means.setdefault(name, weights.clone())
            if mean.is_floating_point():  # counters of BatchNorm are whole numbers
                mean += (weights - mean) / number
    model.clip.model.load_state_dict(means)
    template = ClassTemplates([model.class_templates.template])
    texts = class_embeddings(model.clip, template, model.classnames)
    model = replace(model, classifier=Classifier.of(texts))
    with replacing(model_output) as folder:
        clips.save_finetuned(
            model.clip,
            model.classifier,
            model.classnames,
            model.class_templates,
            folder,
        )
    log.info(
        "Averaged the weights of %d of %d trainings.", len(used), len(trainings)
    )
    first, of_first = used[0]
    flags = sorted({*of_first.flags, "ours"})
    metadata = replace(of_first, flags=flags, averaged=len(used))
    tables.write(
        history_output, tables.read(first.history), tables.HISTORY, metadata
    )
    run = RunFiles(
        method, seed, metrics_output, train_predictions_output, predictions_output
    )
    classify_evaluated(
        images_path, model, (ids, predicted), flags, dataset, run, threads
    )
