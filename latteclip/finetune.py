"""The one training loop: both CLIP towers under an objective.

Letters: N training images, B batch, C classes, D embedding width.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import torch

from latteclip import clip as clips
from latteclip import devices, images, objectives, tables
from latteclip.errors import UserError
from latteclip.files import replacing
from latteclip.progress import Progress
from latteclip.prompts import class_texts
from latteclip.texts import TextBank

HISTORY = pa.schema(
    [("step", pa.int32()), ("epoch", pa.int32())]
    + [
        (name, pa.float32())
        for name in (
            "lr",
            "loss",
            "loss_zero_shot",
            "loss_finetuned",
            "agreement",  # share of the batch whose two pseudo-labels are the same
            "weight_class",  # mean share of each text in the mixes
            "weight_image",
            "weight_group",
            "prototype_drift",  # mean over classes of 1 - cosine(P_c, W0_c)
            "logit_scale",
        )
    ]
)
MAX_LOGIT_SCALE = math.log(100)
CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device


@dataclass(frozen=True)
class Optimiser:
    """AdamW with a linear warm-up and a cosine decay (LatteCLIP, section 4)."""

    epochs: int
    warmup_steps: int
    batch_size: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def rate(self, step: int, total: int) -> float:
        """Learning rate of a step, counted from 0, of `total` steps."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return self.lr * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class FinetuneSettings:
    """What decides a tuned model, beside its inputs and its seed."""

    model: str
    pretrained: str | None
    template: str
    objective: str
    optimiser: dict[str, Any]
    switches: dict[str, Any] = field(default_factory=dict)  # of LatteCLIP


@dataclass(frozen=True)
class TrainingFiles:
    """The inputs; the captions are None where the method does without them."""

    images: str
    pseudo_labels: str
    image_captions: str | None = None
    group_captions: str | None = None


def finetune(
    files: TrainingFiles,
    settings: FinetuneSettings,
    model_output: str,
    history_output: str,
    *,
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Tune CLIP on the images that are not in the test split; labels are not read.

    Writes the tuned model (see `clip.save`) and one HISTORY row a step.

    Raises:
        UserError: an input does not fit, or the loss is not finite.
    """
    torch.manual_seed(seed)
    optimiser = Optimiser(**settings.optimiser)
    clip = clips.load(settings.model, settings.pretrained, devices.pick(device, threads))
    bank = TextBank(clip)
    paths, classnames, pseudo_labels, texts = _read(files, settings, bank)
    objective = _objective(settings, bank, texts, seed)
    steps = schedule(len(paths), optimiser.batch_size, optimiser.epochs, seed)
    loader = images.batches(
        images.ImageFiles(paths, clip.augment, seed),
        [keys for _, keys in steps],
        clip.device,
        threads,
    )
    adamw = torch.optim.AdamW(
        parameter_groups(clip.model, optimiser.weight_decay),
        betas=(optimiser.beta1, optimiser.beta2),
        eps=optimiser.eps,
    )
    history: list[dict[str, torch.Tensor | float]] = []
    progress = Progress(sum(len(keys) for _, keys in steps), "images")
    for step, ((epoch, keys), (index, batch)) in enumerate(zip(steps, loader, strict=True)):
        if step == 0 or epoch != steps[step - 1][0]:
            objective.start_epoch()
        rate = optimiser.rate(step, len(steps))
        logs = _step(clip, objective, adamw, rate, index, pseudo_labels[index], batch)
        history.append({"step": step, "epoch": epoch, "lr": rate, **logs})
        if (step + 1) % CHECK_EVERY == 0 or step == len(steps) - 1:
            check_finite(history[-CHECK_EVERY:])
        progress.add(len(keys), f"epoch {epoch + 1} of {optimiser.epochs}")
    clip.model.eval()
    with replacing(model_output) as folder:
        clips.save(clip, objective.classifier(), classnames, settings.template, folder)
    _write_history(history, settings, seed, history_output)


def _read(
    files: TrainingFiles, settings: FinetuneSettings, bank: TextBank
) -> tuple[list[str], list[str], torch.Tensor, objectives.TrainingTexts]:
    """Paths of the N images, the class names, the pseudo-labels [N] and the texts."""
    table, classnames = tables.read_unlabelled(files.images, training=True)
    image_ids = table["image_id"].to_pylist()
    if not image_ids:
        raise UserError(f"{files.images} has no training image; check the dataset's split.")
    pseudo_labels = tables.lookup(
        files.pseudo_labels, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids
    )
    descriptions = class_texts(settings.template, classnames)
    classes = bank.add(descriptions)
    none = torch.zeros(0, dtype=torch.long)
    image_texts, group_texts, group_labels = none, none, none
    if files.image_captions:
        captions = tables.lookup(files.image_captions, tables.CAPTIONS, "id", "caption", image_ids)
        image_texts = bank.add(_or_class(captions, pseudo_labels, descriptions))
    if files.group_captions:
        groups, _ = tables.read(files.group_captions, tables.CAPTIONS, ["pseudo_label", "caption"])
        labels = groups["pseudo_label"].to_pylist()
        group_texts = bank.add(_or_class(groups["caption"].to_pylist(), labels, descriptions))
        group_labels = torch.tensor(labels)
    return (
        table["path"].to_pylist(),
        classnames,
        torch.tensor(pseudo_labels),
        objectives.TrainingTexts(classes, image_texts, group_texts, group_labels),
    )


def _or_class(captions: list[str], labels: list[int], descriptions: list[str]) -> list[str]:
    """The captions, an empty one replaced by the class description of its pseudo-label."""
    return [caption or descriptions[label] for caption, label in zip(captions, labels, strict=True)]


def _objective(
    settings: FinetuneSettings, bank: TextBank, texts: objectives.TrainingTexts, seed: int
) -> objectives.Objective:
    if settings.objective == "flyp":
        return objectives.Flyp(bank, texts)
    if settings.objective == "latteclip":
        switches = objectives.LatteClipSettings(**settings.switches)
        return objectives.LatteClip(bank, texts, switches, seed)
    raise UserError(f"Objective {settings.objective!r} is none of flyp, latteclip.")


def schedule(
    n: int, batch_size: int, epochs: int, seed: int
) -> list[tuple[int, list[tuple[int, int]]]]:
    """(epoch, keys of the batch) of every step: a new shuffle each epoch.

    Images that do not fill a batch sit out that epoch: the loss compares within a batch, so its
    size must not change. With fewer images than a batch holds, all of them are one batch.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, n)
    return [
        (epoch, [(epoch, index) for index in order[start : start + size]])
        for epoch in range(epochs)
        for order in [torch.randperm(n, generator=generator).tolist()]
        for start in range(0, n - size + 1, size)
    ]


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices, none on gains, biases, norms and logit_scale."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _step(
    clip: clips.Clip,
    objective: objectives.Objective,
    adamw: torch.optim.Optimizer,
    rate: float,
    index: torch.Tensor,
    pseudo_labels: torch.Tensor,
    batch: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """One optimiser step; detached scalars for the history."""
    for group in adamw.param_groups:
        group["lr"] = rate
    clip.model.train()
    logit_scale: torch.nn.Parameter = clip.model.logit_scale  # type: ignore[assignment]
    features = clips.encode_images(clip, batch)  # [B, D]
    loss, logs = objective.loss(objectives.Batch(index, pseudo_labels, features, logit_scale.exp()))
    adamw.zero_grad()
    loss.backward()
    adamw.step()
    with torch.no_grad():
        logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    objective.after_step()
    return {"loss": loss.detach(), "logit_scale": logit_scale.detach().clone(), **logs}


def check_finite(rows: list[dict[str, Any]]) -> None:
    """Raise UserError at the first row of the history whose loss is not finite."""
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise UserError(
                f"The loss became {float(row['loss'])} at step {row['step']} (epoch "
                f"{row['epoch'] + 1}); nothing was written: lower finetune.lr or raise "
                "finetune.warmup_steps."
            )


def _write_history(
    history: list[dict[str, Any]], settings: FinetuneSettings, seed: int, output: str
) -> None:
    columns = {
        name: [None if row.get(name) is None else float(row[name]) for row in history]
        for name in HISTORY.names
    }
    columns |= {name: [row[name] for row in history] for name in ("step", "epoch")}
    tables.write(output, columns, HISTORY, {"settings": asdict(settings), "seed": seed})
