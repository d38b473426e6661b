"""Train a small image model on the fused labels and their probabilities. Not in the paper.

Hinton et al. 2015 ("Distilling the knowledge in a neural network") train on a teacher's
probabilities. Kumar et al. 2022 ("Fine-tuning can distort pretrained features") fit a classifier
before they train the network with it. Wortsman et al. 2022 ("Robust fine-tuning of zero-shot
models") average the weights from before and after a training.

Letters: N images, B of a batch, C classes, D embedding width.
"""

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from PIL import Image

from latteclip.clip import finetuned, image_encoders
from latteclip.clip.classifier import Classifier, load_classifier, parts
from latteclip.clip.image_encoder_files import ImagePreprocessing
from latteclip.clip.image_encoders import ImageEncoder
from latteclip.config.sections.base import Section
from latteclip.config.sections.class_texts import ClassTextsSection
from latteclip.config.sections.finetune import FinetuneSection
from latteclip.core import devices, tables
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.core.hashing import digest_of
from latteclip.core.holdout import NO_FOLD, Fold, left_out
from latteclip.core.metadata import IndexMetadata
from latteclip.core.signals import ending_in_order
from latteclip.core.terminal import Progress
from latteclip.data.images import open_rgb
from latteclip.labels.features import read_features
from latteclip.labels.fusion_report import read_fusion_report
from latteclip.labels.likelihood import descend
from latteclip.train.data import most_drawn
from latteclip.train.history import TrainingMetadata
from latteclip.train.settings import Recipe, recipe_for

log = logging.getLogger(__name__)
SCALE = 20.0  # of scores before training
LENGTH = 10.0  # root mean square of centred features to which the classifier is fitted
FITTED = 10_000  # images that the classifier is fitted to before training, at most
SMALLEST_CROP = 0.4  # share of the image's area
ASPECT = 4 / 3  # of a crop, at most
MIRRORED = 0.5  # share of the images
ENCODED = 64  # images encoded at once before training
MIN_CLASSES = 0.5  # share of the classes that a sound model predicts


class StudentSettings(Section):
    """What decides a student, besides its inputs and its seed."""

    network: str  # of timm
    class_texts: ClassTextsSection
    finetune: FinetuneSection
    fold: Fold = NO_FOLD


@dataclass(frozen=True)
class StudentData:
    """The N images that a student learns from."""

    paths: list[str]
    targets: torch.Tensor  # [N, C] float32 probability of each class
    classnames: list[str]
    written_names: dict[str, str]
    drawn: list[str]  # answered images that are left out, because they check labels


def train_student(
    images_path: str,
    pseudo_labels_path: str,
    fused_labels_path: str,
    fusion_report_path: str,
    classifier_path: str,
    settings: StudentSettings,
    model_output: str,
    history_output: str,
    *,
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Train a network of timm with a cosine classifier, and write both as a model folder.

    An interrupted training begins again. Raises UserError where the network cannot be loaded.
    """
    with ending_in_order("Nothing was trained: a rerun starts from the beginning."):
        data = read_data(
            images_path,
            pseudo_labels_path,
            fused_labels_path,
            fusion_report_path,
            classifier_path,
            settings.fold,
        )
        torch.manual_seed(seed)
        where = devices.pick(device, threads)
        encoder = image_encoders.load(settings.network, where, "float32")
        _preprocessing(encoder)  # refuses others than of timm before the work
        recipe = recipe_for(settings.finetune, len(data.paths))
        rows = _fitted_rows(len(data.paths), seed)
        features = _features(encoder, [data.paths[row] for row in rows], threads)
        student = Student(encoder, fit_classifier(features, data.targets[rows]))
        fitted = copy.deepcopy(student.state_dict())
        history, predicted = _train(student, data, recipe, seed, threads)
        student.average_with(fitted)
        n_classes = len(data.targets.argmax(dim=1).unique())
        flags = ["ours"]
        if len(predicted.unique()) < MIN_CLASSES * n_classes:
            flags = ["collapsed", "ours"]
        columns = {
            name: [row.get(name) for row in history] for name in tables.HISTORY.names
        }
        metadata = TrainingMetadata(
            model=settings.network,
            pretrained=None,
            objective="student",
            labels="fused",
            recipe=recipe,
            found=[],
            seed=seed,
            flags=flags,
            drawn=data.drawn,
            identity=digest_of([settings.model_dump_json(), str(seed)]),
        )
        words = ClassTemplates.of(
            settings.class_texts.template, settings.class_texts.class_synonyms
        )
        described = {
            "classnames": data.classnames,
            **ClassTemplates(words.templates, words.synonyms, data.written_names).described,
        }
        with replacing(model_output) as folder:
            scale = student.log_scale.exp().item()
            finetuned.save_student(encoder, student.classifier, described, scale, folder)
        tables.write(history_output, columns, tables.HISTORY, metadata)


def read_data(
    images_path: str,
    pseudo_labels_path: str,
    fused_labels_path: str,
    fusion_report_path: str,
    classifier_path: str,
    fold: Fold,
) -> StudentData:
    """Read the training images with the probabilities of their classes.

    The fused label has its own probability. The rest goes to the other classes as the image
    prototypes have them. Left out are the images of the fold, those of no class by a person, and
    those whose answers check the labels.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    ids = table["image_id"]
    labels, confidence = (
        tables.lookup_column(fused_labels_path, tables.FUSED_LABELS, "image_id", name, ids)
        for name in ("fused_label", "fused_confidence")
    )
    checked = read_fusion_report(fusion_report_path).answers.checking
    drawn = checked if len(checked) <= most_drawn(len(ids)) else []
    is_trained = ~left_out(tables.Strings(ids), fold) & (confidence.to_numpy() > 0)
    is_trained &= ~pc.is_in(ids, pa.array(drawn, pa.string())).to_numpy()
    if is_trained.sum() < 2:
        raise UserError(
            f"{images_path} has {is_trained.sum()} images to train on; check the dataset's split."
        )
    head, described = load_classifier(classifier_path, classnames=classnames)
    features = read_features(pseudo_labels_path, ids)
    rows = torch.from_numpy(np.flatnonzero(is_trained))
    targets = torch.empty(len(rows), len(classnames))
    for part in parts(len(rows)):
        scores = described["logit_scale"] * head.scores(features[rows[part]])
        own = torch.from_numpy(labels.to_numpy()[rows[part].numpy()]).long()[:, None]
        sure = torch.from_numpy(confidence.to_numpy()[rows[part].numpy()])[:, None]
        others = scores.scatter(1, own, -torch.inf).softmax(dim=1)
        targets[part] = ((1 - sure) * others).scatter(1, own, sure)
    paths = table["path"].filter(pa.array(is_trained)).to_pylist()
    written = tables.read_metadata(images_path, IndexMetadata).written_names
    return StudentData(paths, targets, classnames, written, drawn)


class Student(torch.nn.Module):
    """A network with a linear classifier of its normalised features."""

    def __init__(self, encoder: ImageEncoder, classifier: Classifier) -> None:
        """`classifier`: its scores are the logits that training begins with."""
        super().__init__()
        self.encoder = encoder
        self.network = encoder.model
        weights, bias = (
            each.to(encoder.device) / SCALE
            for each in (classifier.weights, classifier.bias)
        )
        self.weights = torch.nn.Parameter(weights)  # [C, D]
        self.bias = torch.nn.Parameter(bias)  # [C]
        self.log_scale = torch.nn.Parameter(
            torch.tensor(SCALE, device=encoder.device).log()
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C] of images [B, 3, H, W]."""
        features = F.normalize(self.network.encode_image(images), dim=-1)  # type: ignore[operator]
        scores = features @ self.weights.T + self.bias
        return self.log_scale.exp() * scores

    @torch.no_grad()
    def average_with(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace each weight by the mean of itself and another, by names of `state_dict`."""
        for name, own in self.state_dict().items():
            if own.is_floating_point():  # counters of BatchNorm are whole numbers
                own.lerp_(weights[name], 0.5)

    @property
    def classifier(self) -> Classifier:
        return Classifier.of(self.weights, self.bias)


def _fitted_rows(n: int, seed: int) -> list[int]:
    """Return the rows of the images that the classifier is fitted to before training."""
    drawn: list[int] = np.random.default_rng(seed).permutation(n)[:FITTED].tolist()
    return sorted(drawn)


@torch.no_grad()
def _features(encoder: ImageEncoder, paths: list[str], threads: int) -> torch.Tensor:
    """Return the normalised features [n, D] of images before training."""
    batches = []
    with ThreadPoolExecutor(threads) as pool:
        for part in parts(len(paths), ENCODED):
            images = pool.map(lambda path: encoder.preprocess(open_rgb(path)), paths[part])
            batch = torch.stack(list(images)).to(encoder.device)
            features = F.normalize(encoder.model.encode_image(batch), dim=-1)  # type: ignore[operator]
            batches.append(features.float().cpu())
    return torch.cat(batches)


def fit_classifier(features: torch.Tensor, targets: torch.Tensor) -> Classifier:
    """Return the classifier of features [n, D] whose logits make probabilities [n, C] likely.

    It is a logistic regression of the centred features with a standard normal prior.
    """
    mean = features.mean(dim=0)
    centred = (features - mean).double()
    spread = centred.square().sum(dim=1).mean().sqrt().clamp(min=1e-12)
    x = LENGTH * centred / spread
    wanted = targets.double()
    n_classes = targets.shape[1]

    def loss(free: torch.Tensor) -> torch.Tensor:
        logits = torch.addmm(free[:, -1], x, free[:, :-1].T)
        likelihood = (wanted * logits.log_softmax(dim=1)).sum()
        return (0.5 * free.square().sum() - likelihood) / len(x)

    zeros = torch.zeros(n_classes, x.shape[1] + 1, dtype=torch.float64)
    solution = descend(loss, zeros)
    weights = solution[:, :-1] * LENGTH / spread
    return Classifier.of(weights, solution[:, -1] - weights @ mean.double())


def _train(
    student: Student, data: StudentData, recipe: Recipe, seed: int, threads: int
) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """Return the rows of the history, and the predictions [n] of the last epoch."""
    steps = recipe.steps_per_epoch(len(data.paths))
    total = recipe.epochs * steps
    matrices = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (recipe.beta1, recipe.beta2)
    adamw = torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, eps=recipe.eps)
    history: list[dict[str, Any]] = []
    predicted: list[torch.Tensor] = []
    progress = Progress(total * recipe.batch_size, "images")
    student.network.train(recipe.batch_norm == "train")
    for step, (rows, images) in enumerate(_batches(student, data, recipe, seed, threads)):
        began = time.monotonic()
        for group in adamw.param_groups:
            group["lr"] = recipe.rate(step, total)
        logits = student(images)
        targets = data.targets[rows].to(logits.device)
        loss = F.cross_entropy(logits, targets)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        best = logits.argmax(dim=1)
        row = {
            "step": step + 1,
            "epoch": step // steps,
            "lr": recipe.rate(step, total),
            "loss": loss.item(),
            "agreement": (best == targets.argmax(dim=1)).float().mean().item(),
            "logit_scale": student.log_scale.exp().item(),
            "images_per_second": len(rows) / (time.monotonic() - began),
        }
        if not np.isfinite(row["loss"]):
            raise UserError(
                f"The student's loss is not finite at step {step + 1}; lower finetune.lr of its "
                "method."
            )
        history.append(row)
        if step >= total - steps:
            predicted.append(best.cpu())
        progress.add(len(rows), f"loss {row['loss']:.3f}")
    student.network.eval()
    return history, torch.cat(predicted)


def _batches(
    student: Student, data: StudentData, recipe: Recipe, seed: int, threads: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield rows [B] and their augmented images [B, 3, H, W], all images once an epoch."""
    n = len(data.paths)
    size = min(recipe.batch_size, n)
    crop = partial(augmented, preprocessing=_preprocessing(student.encoder))
    with ThreadPoolExecutor(threads) as pool:
        for epoch in range(recipe.epochs):
            order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))
            filled = recipe.steps_per_epoch(n) * size
            order = order.repeat(math.ceil(filled / n))[:filled]
            for rows in order.split(size):
                paths = [data.paths[row] for row in rows.tolist()]
                seeds = [(seed, epoch, row) for row in rows.tolist()]
                images = pool.map(crop, paths, seeds)
                yield rows, torch.stack(list(images)).to(student.encoder.device)


def _preprocessing(encoder: ImageEncoder) -> ImagePreprocessing:
    if encoder.timm is None:
        raise UserError(
            f"The student {encoder.name} is no network of timm; name another in student."
        )
    return encoder.timm.preprocessing


def augmented(
    path: str, seed: Sequence[int], preprocessing: ImagePreprocessing
) -> torch.Tensor:
    """Return a random crop [3, H, W] of an image, mirrored every second time."""
    image = open_rgb(path)
    rng = np.random.default_rng(seed)
    share = rng.uniform(SMALLEST_CROP, 1)
    ratio = np.exp(rng.uniform(-1, 1) * np.log(ASPECT))
    side = np.sqrt(share * image.width * image.height)
    wide = min(image.width, side * np.sqrt(ratio))
    high = min(image.height, side / np.sqrt(ratio))
    left = rng.uniform(0, image.width - wide)
    top = rng.uniform(0, image.height - high)
    height, width = preprocessing.input_size[1:]
    box = (left, top, left + wide, top + high)
    crop = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if rng.random() < MIRRORED:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mean, std = (
        np.array(each, np.float32) for each in (preprocessing.mean, preprocessing.std)
    )
    pixels = (np.asarray(crop, np.float32) / 255 - mean) / std
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
