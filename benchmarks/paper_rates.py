"""GPU hours and disk of a configuration, as docs/scaling.md counts them on paper.

Hours are counts of images divided by rates, which are measured on a machine or computed.
"""

import re
from dataclasses import dataclass

from latteclip.cli.estimate import GROUPS, amounts, samples
from latteclip.config import job_resources
from latteclip.config.configuration import Configuration
from latteclip.config.job_resources import Counts, counts

# On paper (docs/scaling.md): what a card computes in bf16, TFLOP/s, and the share that is reached.
PEAKS = {"A100": 312, "H100": 989}
REACHED = 0.4
# The work in TFLOP: a caption by LLaVA-1.6 Mistral 7B of so many tokens, read and written; with
# ViT-B/32 a sample that LatteCLIP is trained on, and an image that is encoded.
CAPTION = 47.0
TOKENS = 2_920 + 77
SQUARE = 1_176 + 40 + 77  # tokens where `captioner.square_side` is LLaVA's overview
SAMPLE = 0.039
IMAGE = 0.0088
CORES = 8  # of a job
DECODED = 285  # images per second that a core decodes
GB = {"MB": 1e-3, "GB": 1}


@dataclass(frozen=True)
class Rates:
    """How fast the work goes on one GPU, per second. None where that is not known."""

    captions: float | None
    samples: float | None  # trained on
    images: float | None  # encoded
    fed: float | None  # images that the cores of a job decode and crop
    tokens: int | None = (
        None  # of those captions, if all pictures have as many; None: as measured
    )
    engine_start: float = 180.0  # seconds until a captioner answers
    job_start: float = 60.0  # seconds of any other job: imports, model, first files


@dataclass(frozen=True)
class Sizes:
    """GB of models: those that the hub gives, and each one that is written."""

    captioner: float = 15.1
    clip: float = 0.6
    tuned: float = 0.6


def on_paper(card: str, tokens: int = TOKENS) -> Rates:
    """Return rates of a card of PEAKS, for captions of so many tokens, read and written."""
    reached = REACHED * PEAKS[card]
    caption = CAPTION * tokens / TOKENS
    return Rates(
        reached / caption, reached / SAMPLE, reached / IMAGE, CORES * DECODED, tokens
    )


def hours(configuration: Configuration, rates: Rates) -> dict[str, float]:
    """Return GPU hours of each kind of work over all datasets, of kinds whose rates are known.

    Datasets of unknown size are left out.
    """
    found = {name: counts(configuration, name) for name in configuration.datasets}
    known = {name: images for name, images in found.items() if images}
    seconds = {}
    if rates.captions:
        seconds["captions"] = sum(
            _captioning(configuration, name, images, rates)
            for name, images in known.items()
        )
    if rates.samples:
        seconds["fine-tuning"] = sum(
            _training(
                configuration, name, images, _slower(rates.samples, rates), rates.job_start
            )
            for name, images in known.items()
        )
    if rates.images:
        seconds["evaluation and pseudo-labels"] = sum(
            _encoding(
                configuration, name, images, _slower(rates.images, rates), rates.job_start
            )
            for name, images in known.items()
        )
    return {work: total / 3600 for work, total in seconds.items()}


def _captions(configuration: Configuration, dataset: str, rates: Rates) -> float:
    """Return captions per second, of smaller pictures where the dataset has them."""
    assert rates.captions is not None
    squared = configuration.section("captioner", dataset)["square_side"] is not None
    return rates.captions * (rates.tokens / SQUARE if squared and rates.tokens else 1.0)


def _slower(rate: float, rates: Rates) -> float:
    """Return what a GPU does at a rate, unless it waits for images."""
    return min(rate, rates.fed) if rates.fed else rate


def _captioning(
    configuration: Configuration, dataset: str, images: Counts, rates: Rates
) -> float:
    """Return GPU seconds of captions and class scores. A score counts as a caption: too much."""
    asked = [
        amounts(configuration, dataset, images)[GROUPS]
        if kind == "group"
        else float(images.train)
        for kind in configuration.caption_kinds(dataset)
    ]
    if configuration.scores_classes(dataset):
        asked.append(
            images.train * job_resources.questions_per_image(configuration, dataset)
        )
    shards = configuration.shards(dataset)
    gpus = job_resources.captioner_gpus(configuration, dataset)
    rate = _captions(configuration, dataset, rates)
    return gpus * sum(questions / rate + shards * rates.engine_start for questions in asked)


def _training(
    configuration: Configuration, dataset: str, images: Counts, rate: float, start: float
) -> float:
    """Return the seconds of all fine-tunings."""
    return sum(
        samples(configuration, dataset, method, images.train) / rate + start
        for method, _ in configuration.trainings(dataset)
    )


def _encoding(
    configuration: Configuration, dataset: str, images: Counts, rate: float, start: float
) -> float:
    """Return the seconds of the pseudo-labels, and of the evaluation of each tuned model.

    Without a test split the training images are evaluated.
    """
    tuned = len(_trained(configuration, dataset))
    evaluated = images.test or images.train
    return (images.train + images.test) / rate + tuned * (evaluated / rate + start)


def _trained(configuration: Configuration, dataset: str) -> list[tuple[str, int]]:
    return [run for run in configuration.runs(dataset) if configuration.is_tuned(run[0])]


def disk(configuration: Configuration, sizes: Sizes) -> dict[str, float]:
    """Return the GB of what is kept."""
    downloads = 0.0
    unknown = []
    for dataset in configuration.datasets:
        size = re.search(
            r"([\d.]+) (MB|GB)", configuration.dataset(dataset).get("size", "")
        )
        if size:
            downloads += float(size[1]) * GB[size[2]]
        elif dataset in configuration.from_source("downloads"):
            unknown.append(dataset)
    models = sum(
        len({*_trained(configuration, name), *configuration.candidates(name)})
        for name in configuration.datasets
    )
    return {
        f"archives (of {', '.join(unknown)} unknown)" if unknown else "archives": downloads,
        "unpacked images": downloads,
        "models of the hub": sizes.captioner + sizes.clip,
        f"{models} tuned models": sizes.tuned * models,
    }
