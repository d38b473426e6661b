"""A training: its set-up, its state and its optimiser step on B images of C classes."""

import importlib
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.core import devices
from latteclip.core.errors import UserError
from latteclip.core.holdout import NO_FOLD, Fold
from latteclip.core.terminal import Progress, log_work
from latteclip.data import loader
from latteclip.train import data
from latteclip.train.data import TrainingImages
from latteclip.train.objectives import base
from latteclip.train.settings import FinetuneSettings, Recipe

log = logging.getLogger(__name__)
OBJECTIVES = "latteclip.train.objectives"
MAX_LOGIT_SCALE = math.log(100)
# AdamW of the paper's code, which is open_clip's for a ViT (LatteCLIP, section 4).
BETAS = (0.9, 0.98)
EPSILON = 1e-6
WEIGHT_DECAY = 0.2
Keys = list[tuple[int, int]]  # keys of a batch, see `data.schedule`
# Rows [B] of the training images, their labels [B], and the images [B, 3, H, W].
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def diverged(what: str) -> UserError:
    """Return the error of a training whose loss or weights are not finite."""
    remedy = "lower finetune.lr or raise finetune.warmup_steps"
    return UserError(f"{what}; nothing was written: {remedy}.")


class Setup:
    """The model and the data of a training.

    Its micro-batches are exact (Gao et al. 2021, GradCache): the loss compares the whole batch.
    """

    def __init__(
        self,
        files: data.TrainingFiles,
        settings: FinetuneSettings,
        device: str,
        threads: int,
        fold: Fold = NO_FOLD,
    ) -> None:
        """Load the pretrained model and the data, or raise UserError for what does not fit."""
        self.settings = settings
        self.threads = threads
        picked = devices.pick(device, threads)
        section = settings.clip
        self.clip = clips.load(
            section.model, section.pretrained, picked, section.precision
        )
        if picked.type != "cuda":  # there, a lack of memory ends the process
            self.clip.micro_batch = encode.fitting_micro_batch(self.clip)
        texts = base.TokenizedTexts(self.clip)
        template = settings.class_templates.template
        self.inputs = data.read(files, template, settings.labels, texts, fold)

    def training(self, recipe: Recipe, seed: int) -> "Training":
        """Return a training that begins with the model as it is."""
        settings = self.settings
        # An edit of the module reruns only the trainings of its objective.
        module = importlib.import_module(f"{OBJECTIVES}.{settings.module}")
        objective = module.make(self.inputs.texts, settings.method.switches, seed)
        return Training(objective, recipe)

    def images(self, seed: int, folder: str | None) -> TrainingImages:
        """Return the training images, which a folder caches."""
        inputs = self.inputs
        return TrainingImages(
            inputs.paths, inputs.checksums, self.clip.input_size, seed, folder
        )

    def batches(
        self, images: TrainingImages, schedule: Iterable[Keys]
    ) -> Iterator[Batch]:
        """Yield the rows of B images, their labels, and the images on the model's device."""
        for keys, pixels in loader.batches(
            images, schedule, self.clip.device, self.threads
        ):
            rows = torch.tensor([index for _, index in keys])
            yield rows, self.inputs.labels[rows], self.clip.normalise(pixels)


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Apply weight decay to matrices, and none to gains, biases, norms and logit_scale."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {
            "params": [p for p in trained if p.ndim >= 2],
            "weight_decay": WEIGHT_DECAY,
        },
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


class Training:
    """Everything that a step changes."""

    def __init__(self, objective: base.Objective, recipe: Recipe) -> None:
        clip = objective.clip
        self.clip = clip
        self.objective = objective
        self.recipe = recipe
        # `fused` takes a third of the time on a CPU, and does not wait for a GPU under a scaler.
        groups = parameter_groups(clip.model)
        self.adamw = torch.optim.AdamW(
            groups, betas=BETAS, eps=EPSILON, fused=True
        )
        # bool [C] whether each class was predicted in the epoch so far
        self.predicted = torch.zeros(
            len(objective.texts.classes), dtype=torch.bool, device=clip.device
        )
        self.history: list[dict[str, Any]] = []  # a row of numbers for each step
        self.scaler = clip.loss_scaler()
        # A pretrained scale may lie above the bound: SigLIP's does.
        self.max_logit_scale = max(MAX_LOGIT_SCALE, self.logit_scale.item())
        # Rows whose tensors are still on the device.
        self._pending: list[dict[str, Any]] = []

    @property
    def logit_scale(self) -> torch.Tensor:
        """The logarithm of s, a trained scalar."""
        return self.clip.model.logit_scale  # type: ignore[return-value]

    def steps(
        self,
        batches: Iterator[Batch],
        total: int,
        per_epoch: int,
        first: int = 0,
        unit: str = "steps",
    ) -> Iterator[int]:
        """Take the steps from `first` to `total`, and yield after each how many are done."""
        progress = Progress(total, unit, done=first)
        for step in range(first, total):
            epoch = step // per_epoch
            if step % per_epoch == 0:
                self.objective.start_epoch()
                self.predicted = torch.zeros_like(self.predicted)
            rate = self.recipe.rate(step, total)
            try:
                logs = self.step(next(batches), rate)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "The GPU's memory does not suffice; take a smaller clip.model."
                ) from error
            self._pending.append(
                {"step": step, "epoch": epoch, "lr": rate, **logs}
            )
            progress.add(1, f"epoch {epoch + 1} of {total // per_epoch}")
            yield step + 1
        log_work(log, f"Trained {total - first} steps", progress.seconds)

    def step(self, batch: Batch, rate: float) -> dict[str, torch.Tensor]:
        """Take one optimiser step at a learning rate and return detached scalars for the history.

        Nothing here waits for a GPU's results, which would leave the GPU idle.
        """
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.clip.model.train()
        for module in self.clip.model.modules():
            # Its statistics stay those of pretraining.
            if isinstance(module, BatchNorm):
                module.eval()
        pseudo_labels = self.clip.send(batch[1])  # [B]
        loss, scores = self._halving_on_oom(batch)
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.objective.after_step()
        with torch.no_grad():
            self.logit_scale.clamp_(0, self.max_logit_scale)
            predicted = scores.argmax(dim=1)  # [B]
            self.predicted.index_fill_(0, predicted, True)
            return {
                "loss": loss.detach(),
                "agreement": (predicted == pseudo_labels).float().mean(),
            }

    def _halving_on_oom(self, batch: Batch) -> base.Outcome:
        """Return what `_gradients` does, in smaller micro-batches each time memory runs out.

        All random draws are the same again.
        """
        objective = self.objective.state()
        random = self._random_state()
        while True:
            self.adamw.zero_grad()
            try:
                return self._gradients(batch)
            # Which holds memory until the handler is left.
            except torch.OutOfMemoryError:
                size = self.clip.micro_batch or len(batch[2])
                if size == 1:
                    raise
            self.objective.restore(objective)
            self._restore_random(random)
            self.clip.micro_batch = size // 2
            log.info(
                "%d images at once do not fit, trying %d.",
                size,
                self.clip.micro_batch,
            )

    def _gradients(self, batch: Batch) -> base.Outcome:
        """Return the loss of a batch and its scores, after the backward pass."""
        index, labels, images = batch
        features = encode.encode_images(self.clip, images)  # [B, D]
        given = base.TrainingBatch(index, labels, features, self.logit_scale.exp())
        loss, scores = self.objective.loss(given)
        self.scaler.scale(loss).backward()
        return loss, scores

    def flush_metrics(self) -> None:
        """Wait for the device, and move the pending rows to the history.

        UserError: a loss is not finite.
        """
        for row in self._pending:
            loss, agreement = float(row["loss"]), float(row["agreement"])
            if not math.isfinite(loss):
                raise diverged(f"The loss became {loss} at step {row['step']}")
            self.history.append({**row, "loss": loss, "agreement": agreement})
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """Return all state, torch's random generators included."""
        return {
            "model": self.clip.model.state_dict(),
            "adamw": self.adamw.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": self.objective.state(),
            "predicted": self.predicted,
            "history": self.history,
            **self._random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the tensors of a `state_dict`, which may lie on the CPU."""
        self.clip.model.load_state_dict(state["model"])
        self.adamw.load_state_dict(state["adamw"])
        self.scaler.load_state_dict(state["scaler"])
        self.objective.restore(state["objective"])
        self.predicted = state["predicted"].to(self.clip.device)
        self.history = state["history"]
        self._restore_random(state)

    def _random_state(self) -> dict[str, Any]:
        on_gpu = self.clip.device.type == "cuda"
        cuda = [torch.cuda.get_rng_state()] if on_gpu else []
        return {"torch": torch.get_rng_state(), "cuda": cuda}

    def _restore_random(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        for cuda in state["cuda"]:
            torch.cuda.set_rng_state(cuda)
