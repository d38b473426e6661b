"""Files and settings of the trainings that benchmarks run: FLYP on the fused labels of a run."""

from pathlib import Path
from typing import Any

from latteclip.clip.classifier import load_classifier
from latteclip.config.sections.class_texts import ClassTextsSection
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.compute import ComputeSection
from latteclip.config.sections.finetune import FinetuneSection
from latteclip.config.sections.training import TrainingSection
from latteclip.core.holdout import NO_FOLD, Fold
from latteclip.train.data import TrainingFiles
from latteclip.train.settings import FinetuneSettings

AUTO = dict.fromkeys(("epochs", "warmup_steps", "batch_size", "lr"), "auto")


def training_files(folder: Path) -> TrainingFiles:
    """Return the index and the labels in a folder of results."""
    return TrainingFiles(
        images=str(folder / "images.parquet"),
        pseudo_labels=str(folder / "pseudo_labels.parquet"),
        fused_labels=str(folder / "fused_labels.parquet"),
        fusion_report=str(folder / "fused_labels.json"),
    )


def flyp_settings(
    results: Path, template: str | None = None, fold: Fold = NO_FOLD, **finetune: Any
) -> FinetuneSettings:
    """Return settings for the CLIP of a run. Keys of `finetune` that are not given are "auto"."""
    _, described = load_classifier(str(results / "class_embeddings.safetensors"))
    return FinetuneSettings(
        clip=ClipSection(model=described["model"], pretrained=described["pretrained"]),
        class_texts=ClassTextsSection(template=template or described["template"]),
        method=TrainingSection(
            objective="flyp",
            pseudo_labels="fused",
            finetune=FinetuneSection(**(AUTO | finetune)),
        ),
        compute=ComputeSection(),
        fold=fold,
    )
