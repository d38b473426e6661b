"""A training before its first step: model, objective, optimiser, data, and batches to come.

Letters: N training images, B batch, C classes.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch

from latteclip.clip import model as clips
from latteclip.core import devices
from latteclip.core.signals import Signals
from latteclip.train import data, parallel, pictures, prepare
from latteclip.train.augment import Augmentation
from latteclip.train.objectives.base import choose
from latteclip.train.settings import FROZEN, FinetuneSettings, Recipe
from latteclip.train.step import Training, adamw
from latteclip.train.texts import TextBank


def load(
    files: data.TrainingFiles, settings: FinetuneSettings, *, device: str, threads: int
) -> tuple[clips.Clip, TextBank, data.TrainingData]:
    """Load the pretrained model, its bank of texts and the data of a training.

    Raises:
        UserError: an input is missing or does not fit the others.
    """
    choose(settings.objective, settings.switches)  # refuses what it does not know, before the work
    clip = clips.load(
        settings.model, settings.pretrained, devices.pick(device, threads), settings.precision
    )
    if settings.finetune.batch_norm != FROZEN:
        prepare.refuse_moving_statistics(clip, settings.compute, parallel.size())
    bank = TextBank(clip)
    return (
        clip,
        bank,
        data.read(files, settings.words.template, settings.labels, bank, settings.fold),
    )


def training(
    clip: clips.Clip,
    bank: TextBank,
    inputs: data.TrainingData,
    settings: FinetuneSettings,
    recipe: Recipe,
    signals: Signals,
    seed: int,
) -> Training:
    """Return a training that begins with the model as it is, prepared by `prepare_training`."""
    make_objective = choose(settings.objective, settings.switches)
    return Training(
        clip,
        make_objective(bank, inputs.texts, seed),
        adamw(clip.model, recipe),
        torch.zeros(len(inputs.classnames), dtype=torch.long, device=clip.device),
        signals,
        recipe.batch_norm,
    )


def explaining_memory(
    clip: clips.Clip, inputs: data.TrainingData, recipe: Recipe
) -> contextlib.AbstractContextManager[None]:
    """Return a context in which running out of a GPU's memory says what to lower."""
    batch = -(-min(recipe.batch_size, len(inputs.paths)) // parallel.size())
    divisible = prepare.divisible(clip, recipe.batch_norm)
    return prepare.explained(min(clip.micro_batch or batch, batch), divisible=divisible)


def pictures_of(
    clip: clips.Clip, inputs: data.TrainingData, settings: FinetuneSettings, folder: str, seed: int
) -> pictures.TrainingPictures:
    """Return the pictures, which stay in memory or on the disk of a folder once decoded."""
    processes = parallel.size()  # each keeps pictures of its own
    side = Augmentation.of(clip).kept_side
    in_memory = settings.compute.cache_gib * 2**30 / processes
    room = pictures.kept_pictures(inputs.sizes, side, in_memory, folder, processes)
    return pictures.TrainingPictures(inputs.paths, side, seed, room)


def batches(
    clip: clips.Clip,
    files: pictures.TrainingPictures,
    schedule: Iterable[Sequence[tuple[int, int]]],
    threads: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield indices [b] and images [b, 3, H, W] that fall to this process, of each batch."""
    keys = map(parallel.share, schedule)
    return pictures.batches(files, keys, Augmentation.of(clip), clip.device, threads)
