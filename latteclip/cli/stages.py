"""Commands of the workflow's rules: rule, command (with dashes) and function have one name.

A command parses, calls one function with paths and settings, and returns nothing.
"""

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from latteclip.cli import commands
from latteclip.core.settings import from_json, list_from_json

if TYPE_CHECKING:
    from latteclip.captions.runner import CaptionJob

Command = Callable[[argparse.Namespace], None]


def generate_textures(args: argparse.Namespace) -> None:
    """Make a dataset of procedural textures."""
    from latteclip.demo import generate_textures as stage

    stage.generate_textures(from_json(stage.TextureSettings, args.settings), args.output)


def download_dataset(args: argparse.Namespace) -> None:
    """Fetch, verify and unpack a dataset."""
    from latteclip.data import download_dataset as download

    settings = from_json(download.DownloadSettings, args.settings)
    download.download_dataset(args.dataset, settings, args.output)


def download_clip(args: argparse.Namespace) -> None:
    """Fetch a CLIP of the Hugging Face hub into its cache."""
    from latteclip.data import download_models

    settings = from_json(download_models.HubClip, args.settings)
    download_models.download_clip(settings, args.output)


def download_captioner(args: argparse.Namespace) -> None:
    """Fetch a captioner of the Hugging Face hub into its cache."""
    from latteclip.data import download_models

    settings = from_json(download_models.HubCaptioner, args.settings)
    download_models.download_captioner(settings, args.output)


def index_images(args: argparse.Namespace) -> None:
    """Read a dataset's split and decode its images once."""
    from latteclip.data import index_images as stage
    from latteclip.data.splits import SplitSettings

    settings = from_json(SplitSettings, args.settings)
    outputs = (args.output, args.corrupt, args.fingerprints)
    state = stage.FolderState(args.folder_state, args.folder_files) if args.folder_state else None
    stage.index_images(args.folder, settings, *outputs, threads=args.threads, folder_state=state)


def find_duplicates(args: argparse.Namespace) -> None:
    """Find images that show the same picture, within and between the splits."""
    from latteclip.data import find_duplicates as stage

    stage.find_duplicates(args.images, args.fingerprints, args.output)


def pseudo_label_images(args: argparse.Namespace) -> None:
    """Classify every image with the pretrained CLIP."""
    from latteclip.labels import pseudo_label_images as zero_shot

    zero_shot.pseudo_label_images(
        args.images,
        from_json(zero_shot.ZeroShotSettings, args.settings),
        args.output,
        args.class_embeddings,
        device=args.device,
        threads=args.threads,
    )


def caption_images(args: argparse.Namespace) -> None:
    """Describe every training image."""
    from latteclip.captions import caption

    caption.caption_images(args.images, args.pseudo_labels, args.prompt, _captioning(args))


def _captioning(args: argparse.Namespace) -> "CaptionJob":
    """What captions of both kinds and class scores have in common."""
    from latteclip.captions import requests, runner
    from latteclip.captions.engines.base import CaptionerSettings

    return runner.CaptionJob(
        from_json(CaptionerSettings, args.captioner),
        args.output,
        args.store,
        args.threads,
        requests.Shard.parse(args.shard),
    )


def caption_groups(args: argparse.Namespace) -> None:
    """Describe groups of training images that share a pseudo-label."""
    from latteclip.captions import caption, requests

    caption.caption_groups(
        args.images,
        args.pseudo_labels,
        args.prompt,
        from_json(requests.GroupSettings, args.groups),
        _captioning(args),
    )


def score_classes(args: argparse.Namespace) -> None:
    """Let the captioner score CLIP's best classes of every training image."""
    from latteclip.captions import class_questions
    from latteclip.captions import score_classes as stage

    stage.score_classes(
        stage.ScoreFiles(args.images, args.pseudo_labels, args.class_embeddings),
        from_json(class_questions.ScoreSettings, args.scores),
        _captioning(args),
    )


def gather_captions(args: argparse.Namespace) -> None:
    """Put the shards of a table of captions or class scores together."""
    from latteclip.captions import gather_captions as stage

    stage.gather_captions(args.images, args.shards, args.output)


def summarize_captions(args: argparse.Namespace) -> None:
    """Say in numbers what the captions look like."""
    from latteclip.captions import summarize_captions as stage

    stage.summarize_captions(args.captions, args.images, args.output)


def fuse_labels(args: argparse.Namespace) -> None:
    """Label training images by all that is known of them."""
    from latteclip.labels import fuse_labels as stage

    stage.fuse_labels(
        stage.FusionFiles(
            args.images,
            args.pseudo_labels,
            args.class_embeddings,
            args.image_captions,
            args.class_scores,
        ),
        from_json(stage.FusionSettings, args.settings),
        args.output,
        args.prototypes,
        args.votes,
        device=args.device,
        threads=args.threads,
    )


def calibrate_zero_shot(args: argparse.Namespace) -> None:
    """Take each class's mean over the training images off the zero-shot scores."""
    from latteclip.labels import calibrate_zero_shot as stage

    stage.calibrate_zero_shot(
        args.images, args.pseudo_labels, args.class_embeddings, args.output, args.prototypes
    )


def score_unknown(args: argparse.Namespace) -> None:
    """Say how likely each image belongs to none of the classes."""
    from latteclip.labels import score_unknown as stage

    settings = from_json(stage.UnknownSettings, args.settings)
    stage.score_unknown(
        args.images,
        args.pseudo_labels,
        args.class_embeddings,
        settings,
        args.output,
        args.detector,
        args.class_scores,
    )


def assemble_model(args: argparse.Namespace) -> None:
    """Put the pretrained CLIP and a classifier into one folder."""
    from latteclip.deploy import assemble_model as stage

    settings = from_json(stage.PretrainedClip, args.settings)
    stage.assemble_model(args.classifier, settings, args.output)


def find_learning_rate(args: argparse.Namespace) -> None:
    """Find a learning rate by short trainings, without labels."""
    from latteclip.train import find_learning_rate as stage
    from latteclip.train.data import TrainingFiles
    from latteclip.train.settings import FinetuneSettings

    stage.find_learning_rate(
        TrainingFiles(
            args.images,
            args.pseudo_labels,
            args.image_captions,
            args.group_captions,
            args.fused_labels,
            args.calibrated,
            args.image_prototypes,
        ),
        from_json(FinetuneSettings, args.settings),
        args.output,
        device=args.device,
        threads=args.threads,
    )


def average_weights(args: argparse.Namespace) -> None:
    """Average the weights of several trainings into one model."""
    from latteclip.deploy import average_weights as stage

    results = list_from_json(stage.TrainingResult, args.trainings, "trainings")
    stage.average_weights(results, args.model, args.history, args.left_out)


def finetune(args: argparse.Namespace) -> None:
    """Tune CLIP under a method's objective."""
    # Read when torch first uses the GPU: texts of several lengths leave no gaps in its memory.
    # torch prefers the older of its two names for this variable.
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    from latteclip.train import finetune as stage
    from latteclip.train.data import TrainingFiles
    from latteclip.train.settings import FinetuneSettings

    stage.finetune(
        TrainingFiles(
            args.images,
            args.pseudo_labels,
            args.image_captions,
            args.group_captions,
            args.fused_labels,
            args.calibrated,
            args.image_prototypes,
            args.learning_rate,
        ),
        from_json(FinetuneSettings, args.settings),
        stage.TrainingOutputs(args.model, args.history, args.checkpoint),
        seed=args.seed,
        device=args.device,
        threads=args.threads,
    )


def evaluate(args: argparse.Namespace) -> None:
    """Classify the test split with a tuned model."""
    from latteclip.evaluate import evaluate as stage
    from latteclip.evaluate.metrics import Outputs, Run

    stage.evaluate(
        stage.EvaluateFiles(
            args.images, args.pseudo_labels, args.model, args.history, args.left_out
        ),
        from_json(stage.EvaluateSettings, args.settings),
        Run(args.dataset, args.method, args.seed),
        Outputs(args.predictions, args.metrics),
        args.train_predictions,
        device=args.device,
        threads=args.threads,
    )


def evaluate_classifier(args: argparse.Namespace) -> None:
    """Classify the test split without training, by features alone."""
    from latteclip.evaluate import evaluate_classifier as stage
    from latteclip.evaluate.metrics import Outputs, Run

    stage.evaluate_classifier(
        stage.ClassifierFiles(args.images, args.pseudo_labels, args.classifier, args.votes),
        from_json(stage.ClassifierSettings, args.settings),
        Run(args.dataset, args.method, args.seed),
        Outputs(args.predictions, args.metrics),
        args.train_predictions,
    )


def propagate_labels(args: argparse.Namespace) -> None:
    """Classify the test split by a graph of the training images, without training."""
    from latteclip.evaluate import propagate_labels as stage
    from latteclip.evaluate.metrics import Outputs, Run

    stage.propagate_labels(
        stage.PropagationFiles(args.images, args.pseudo_labels, args.class_embeddings),
        from_json(stage.PropagationSettings, args.settings),
        Run(args.dataset, args.method, args.seed),
        Outputs(args.predictions, args.metrics),
        device=args.device,
        threads=args.threads,
    )


def score_audit(args: argparse.Namespace) -> None:
    """Score a person's answers: accuracies and differences of all runs."""
    from latteclip.audit import score_audit as stage

    runs = list_from_json(stage.RunFiles, args.runs, "runs")
    stage.score_audit(args.dataset, args.plan, args.answers, runs, args.output)


def select_model(args: argparse.Namespace) -> None:
    """Choose the model that people take, without labels."""
    from latteclip.evaluate import select_model as stage

    runs = list_from_json(stage.CandidateFiles, args.candidates, "candidates")
    stage.select_model(args.dataset, runs, args.votes, args.audit, args.output, args.model)


def summarize(args: argparse.Namespace) -> None:
    """Collect the metrics of all runs in one table."""
    from latteclip.evaluate import summarize as stage

    stage.summarize(
        args.metrics,
        args.selections,
        args.audits,
        args.baseline,
        args.csv,
        args.markdown,
        args.others,
    )


def report_dataset(args: argparse.Namespace) -> None:
    """Write the page of a dataset: accuracies, changes, pictures, provenance."""
    from latteclip.report import report_dataset as dataset_report
    from latteclip.report import runs

    dataset_report.report_dataset(
        dataset_report.ReportFiles(
            args.images,
            args.pseudo_labels,
            args.image_captions,
            args.group_captions,
            args.caption_summary,
            args.selection,
            args.calibrated,
            args.audit,
            args.unknown,
            args.duplicates,
            args.corrupt,
        ),
        runs.run_files(args.runs),
        from_json(dataset_report.ReportSettings, args.settings),
        args.output,
    )


def index_results(args: argparse.Namespace) -> None:
    """Write the page that compares all datasets and methods."""
    from latteclip.report import index_results as results_index

    settings = from_json(results_index.IndexSettings, args.settings)
    results_index.index_results(
        args.metrics, args.selections, args.audits, settings, args.output, args.others
    )


# Options that several commands share; everything else is a required string.
OPTIONS = {
    "threads": {"type": commands.threads(), "default": os.cpu_count(), "help": "CPU threads"},
    "device": {"default": "auto", "help": "auto, cpu, cuda or cuda:<n>"},
    "seed": {"type": commands.count(0, 2**63 - 1), "required": True},
    "baseline": {"default": "zero_shot", "help": "the method that gains are over"},
    "selections": {"nargs": "*", "default": [], "help": "what select-model wrote"},
    "audits": {"nargs": "*", "default": [], "help": "what score-audit wrote"},
    "others": {"help": "folder of results, of which other datasets are shown as well"},
    "shard": {"default": "1/1", "help": "which part of how many"},
    "store": {"help": "folder of the answers that outlive this run"},
}
CAPTIONING = ["captioner", "store", "shard", "output", "threads"]
COMMANDS: dict[Command, list[str]] = {
    generate_textures: ["settings", "output"],
    download_dataset: ["dataset", "settings", "output"],
    download_clip: ["settings", "output"],
    download_captioner: ["settings", "output"],
    index_images: [
        "folder",
        "settings",
        "output",
        "corrupt",
        "fingerprints",
        "folder-state?",
        "folder-files?",
        "threads",
    ],
    find_duplicates: ["images", "fingerprints", "output"],
    pseudo_label_images: [
        "images",
        "settings",
        "output",
        "class-embeddings",
        "device",
        "threads",
    ],
    caption_images: ["images", "pseudo-labels?", "prompt", *CAPTIONING],
    caption_groups: ["images", "pseudo-labels", "prompt", "groups", *CAPTIONING],
    score_classes: ["images", "pseudo-labels", "class-embeddings", "scores", *CAPTIONING],
    gather_captions: ["shards...", "images", "output"],
    summarize_captions: ["captions...", "images", "output"],
    calibrate_zero_shot: ["images", "pseudo-labels", "class-embeddings", "output", "prototypes"],
    fuse_labels: [
        "images",
        "pseudo-labels",
        "class-embeddings",
        "image-captions?",
        "class-scores?",
        "settings",
        "output",
        "prototypes",
        "votes?",
        "device",
        "threads",
    ],
    score_unknown: [
        "images",
        "pseudo-labels",
        "class-embeddings",
        "class-scores?",
        "settings",
        "output",
        "detector",
    ],
    assemble_model: ["classifier", "settings", "output"],
    find_learning_rate: [
        "images",
        "pseudo-labels",
        "image-captions?",
        "group-captions?",
        "fused-labels?",
        "calibrated?",
        "image-prototypes?",
        "settings",
        "output",
        "device",
        "threads",
    ],
    average_weights: ["trainings", "model", "history", "left-out"],
    finetune: [
        "images",
        "pseudo-labels",
        "image-captions?",
        "group-captions?",
        "fused-labels?",
        "calibrated?",
        "image-prototypes?",
        "learning-rate?",
        "settings",
        "seed",
        "model",
        "history",
        "checkpoint",
        "device",
        "threads",
    ],
    evaluate: [
        "dataset",
        "method",
        "seed",
        "images",
        "pseudo-labels",
        "model",
        "history",
        "left-out?",
        "settings",
        "predictions",
        "metrics",
        "train-predictions",
        "device",
        "threads",
    ],
    evaluate_classifier: [
        "dataset",
        "method",
        "seed",
        "images",
        "pseudo-labels",
        "classifier",
        "votes?",
        "settings",
        "predictions",
        "metrics",
        "train-predictions",
    ],
    propagate_labels: [
        "dataset",
        "method",
        "seed",
        "images",
        "pseudo-labels",
        "class-embeddings",
        "settings",
        "predictions",
        "metrics",
        "device",
        "threads",
    ],
    score_audit: ["dataset", "plan", "answers", "runs", "output"],
    select_model: ["dataset", "candidates", "votes?", "audit?", "output", "model"],
    summarize: ["metrics...", "selections", "audits", "baseline", "csv", "markdown", "others"],
    report_dataset: [
        "images",
        "pseudo-labels",
        "image-captions?",
        "group-captions?",
        "caption-summary?",
        "selection?",
        "calibrated?",
        "audit?",
        "unknown?",
        "duplicates?",
        "corrupt?",
        "runs",
        "settings",
        "output",
    ],
    index_results: ["metrics...", "selections", "audits", "settings", "output", "others"],
}
