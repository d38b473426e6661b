"""`latteclip <command>`: one command a workflow rule, of the same name.

A command parses, calls one function with paths and settings, and logs to stderr and to a file.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from latteclip.errors import UserError
from latteclip.settings import from_json

if TYPE_CHECKING:
    from latteclip.captions import Job

BAD_INPUT = 2
Command = Callable[[argparse.Namespace], None]


def generate_textures(args: argparse.Namespace) -> None:
    """Make a dataset of procedural textures."""
    from latteclip.demo.textures import write_dataset

    write_dataset(args.output, **json.loads(args.settings))


def download_dataset(args: argparse.Namespace) -> None:
    """Fetch, verify and unpack a dataset."""
    from latteclip import download

    settings = from_json(download.DownloadSettings, args.settings)
    download.download_dataset(args.dataset, settings, args.output)


def index_images(args: argparse.Namespace) -> None:
    """Read a dataset's split and decode its images once."""
    from latteclip import splits

    settings = from_json(splits.SplitSettings, args.settings)
    splits.index_images(args.folder, settings, args.output, args.corrupt, threads=args.threads)


def datasets(args: argparse.Namespace) -> None:
    """List the datasets, or verify what is on disk: datasets check [KEY ...]."""
    from latteclip import datasets as listing

    print(listing.command(args.check))


def pseudo_label_images(args: argparse.Namespace) -> None:
    """Classify every image with the pretrained CLIP."""
    from latteclip import zero_shot

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
    from latteclip import captions

    captions.caption_images(args.images, args.pseudo_labels, args.prompt, _captioning(args))


def _captioning(args: argparse.Namespace) -> "Job":
    """What the two kinds of captions have in common."""
    from latteclip import captioners, captions, shards

    return captions.Job(
        from_json(captioners.CaptionerSettings, args.captioner),
        args.output,
        args.store,
        args.threads,
        shards.Shard.parse(args.shard),
    )


def caption_groups(args: argparse.Namespace) -> None:
    """Describe groups of training images that share a pseudo-label."""
    from latteclip import captions

    captions.caption_groups(
        args.images,
        args.pseudo_labels,
        args.prompt,
        from_json(captions.GroupSettings, args.groups),
        _captioning(args),
    )


def gather_captions(args: argparse.Namespace) -> None:
    """Put the shards of a table of captions together."""
    from latteclip import shards

    shards.gather_captions(args.images, args.shards, args.output)


def summarize_captions(args: argparse.Namespace) -> None:
    """Say in numbers what the captions look like."""
    from latteclip import caption_summary

    caption_summary.summarize_captions(args.captions, args.images, args.output)


def captions(args: argparse.Namespace) -> None:
    """Look at captions: captions show FILE --n 5 [--pictures FOLDER]."""
    from latteclip import caption_listing

    print(caption_listing.command(args.show, args.n, args.pictures))


def label_by_captions(args: argparse.Namespace) -> None:
    """Label training images by their captions and CLIP together."""
    from latteclip import caption_labels

    caption_labels.label_by_captions(
        args.images,
        args.pseudo_labels,
        args.class_embeddings,
        args.image_captions,
        args.group_captions,
        from_json(caption_labels.CaptionLabelSettings, args.settings),
        args.output,
        device=args.device,
        threads=args.threads,
    )


def finetune(args: argparse.Namespace) -> None:
    """Tune CLIP under a method's objective."""
    from latteclip import finetune as stage
    from latteclip.training_data import TrainingFiles

    stage.finetune(
        TrainingFiles(
            args.images,
            args.pseudo_labels,
            args.image_captions,
            args.group_captions,
            args.caption_labels,
        ),
        from_json(stage.FinetuneSettings, args.settings),
        args.model,
        args.history,
        args.checkpoint,
        seed=args.seed,
        device=args.device,
        threads=args.threads,
    )


def evaluate(args: argparse.Namespace) -> None:
    """Classify the test split with a tuned model."""
    from latteclip import evaluate as stage
    from latteclip.metrics import Run

    stage.evaluate(
        args.images,
        args.model,
        args.history,
        from_json(stage.EvaluateSettings, args.settings),
        Run(args.dataset, args.method, args.seed),
        args.predictions,
        args.metrics,
        device=args.device,
        threads=args.threads,
    )


def evaluate_zero_shot(args: argparse.Namespace) -> None:
    """Score the pseudo-labels of the test split."""
    from latteclip import evaluate as stage
    from latteclip.metrics import Run

    stage.evaluate_zero_shot(
        args.images,
        args.pseudo_labels,
        Run(args.dataset, args.method, args.seed),
        args.predictions,
        args.metrics,
    )


def propagate_labels(args: argparse.Namespace) -> None:
    """Classify the test split by a graph of the training images, without training."""
    from latteclip import label_propagation as stage
    from latteclip.metrics import Run

    stage.propagate_labels(
        args.images,
        args.pseudo_labels,
        args.class_embeddings,
        from_json(stage.PropagationSettings, args.settings),
        Run(args.dataset, args.method, args.seed),
        args.predictions,
        args.metrics,
        device=args.device,
        threads=args.threads,
    )


def summarize(args: argparse.Namespace) -> None:
    """Collect the metrics of all runs in one table."""
    from latteclip import report

    report.summarize(args.metrics, args.baseline, args.csv, args.markdown)


# Options that several commands share; everything else is a required string.
OPTIONS = {
    "threads": {"type": int, "default": os.cpu_count(), "help": "CPU threads"},
    "device": {"default": "auto", "help": "auto, cuda or cpu"},
    "seed": {"type": int, "required": True},
    "baseline": {"default": "zero_shot", "help": "the method that gains are over"},
    "shard": {"default": "1/1", "help": "which part of how many"},
    "store": {"help": "folder of the answers that outlive this run"},
    "n": {"type": int, "default": 5, "help": "how many"},
}
CAPTIONING = ["captioner", "store", "shard", "output", "threads"]
COMMANDS: dict[Command, list[str]] = {
    generate_textures: ["settings", "output"],
    download_dataset: ["dataset", "settings", "output"],
    index_images: ["folder", "settings", "output", "corrupt", "threads"],
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
    gather_captions: ["shards...", "images", "output"],
    summarize_captions: ["captions...", "images", "output"],
    captions: ["show...", "n", "pictures?"],
    label_by_captions: [
        "images",
        "pseudo-labels",
        "class-embeddings",
        "image-captions",
        "group-captions",
        "settings",
        "output",
        "device",
        "threads",
    ],
    finetune: [
        "images",
        "pseudo-labels",
        "image-captions?",
        "group-captions?",
        "caption-labels?",
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
        "model",
        "history",
        "settings",
        "predictions",
        "metrics",
        "device",
        "threads",
    ],
    evaluate_zero_shot: [
        "dataset",
        "method",
        "seed",
        "images",
        "pseudo-labels",
        "predictions",
        "metrics",
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
    summarize: ["metrics...", "baseline", "csv", "markdown"],
    datasets: ["check*"],
}


def parser() -> argparse.ArgumentParser:
    """The command line; "?" ends an optional name, "..." and "*" positional ones, "*" optional."""
    top = argparse.ArgumentParser(
        prog="latteclip",
        description="Stages of the LatteCLIP workflow. Snakemake runs them in order: "
        "snakemake -j4 --config dataset=demo",
    )
    top.add_argument("--version", action="version", version=version("latteclip"))
    commands = top.add_subparsers(required=True, metavar="command")
    for command, options in COMMANDS.items():
        name = command.__name__.replace("_", "-")
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        for option in options:
            if option.endswith("..."):
                sub.add_argument(option.removesuffix("..."), nargs="+")
            elif option.endswith("*"):
                sub.add_argument(option.removesuffix("*"), nargs="*")
            else:
                known = OPTIONS.get(option, {"required": not option.endswith("?")})
                sub.add_argument(f"--{option.removesuffix('?')}", **known)  # type: ignore[arg-type]
        sub.add_argument("--log", help="file that gets the log as well")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit status 0, or 2 after one sentence about bad input."""
    args = parser().parse_args(arguments)
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if args.log:
        Path(args.log).parent.mkdir(parents=True, exist_ok=True)
        if is_first:
            Path(args.log).write_text("")
        # To append: vLLM closes all handlers when it starts, and only such a one opens again.
        handlers.append(logging.FileHandler(args.log, encoding="utf-8"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=handlers, force=True)
    log = logging.getLogger("latteclip")
    log.setLevel(logging.INFO if is_first else logging.WARNING)
    try:
        args.command(args)
    except UserError as error:
        log.error("error: %s", error)
        return BAD_INPUT
    except BrokenPipeError:  # of `latteclip datasets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        log.exception("%s failed.", args.command.__name__)
        return 1
    return 0
