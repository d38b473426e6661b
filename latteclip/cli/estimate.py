"""What a run asks captioners, and what a full run takes by a limited run of it.

`snakemake -n` prints the first, and `latteclip status --estimate` both.
"""

import json
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from latteclip.captions.answers import AnswersMetadata
from latteclip.config import layers
from latteclip.config.keys import FinetuneSection
from latteclip.config.labellers import Captioner
from latteclip.config.resolve import Dataset, Run
from latteclip.core import tables
from latteclip.core.files import GROUPS, IMAGES, NAMES, SCORES
from latteclip.core.run_options import read_options, run_command
from latteclip.core.tables import IndexMetadata
from latteclip.core.terminal import WORK, counted
from latteclip.data.images import image_files
from latteclip.train.settings import recipe_for, steps_per_epoch

log = logging.getLogger(__name__)
RESULTS = Path("results")
INDEX = "images.parquet"
LIMIT = 64  # images of the limited run that the command makes
TITLES = {
    IMAGES: "captions of images",
    GROUPS: "captions of groups",
    NAMES: "names of images",
    SCORES: "class scores",
}
# Rules that ask a captioner, by what they ask for: they grow with their questions.
ASKING = {
    "caption_images": IMAGES,
    "caption_groups": GROUPS,
    "name_images": NAMES,
    "score_classes": SCORES,
}
TRAINING = ("finetune", "find_learning_rate")  # grow with images and epochs
STARTS_ONLY = "evaluate_classifier"  # a job that does little but start
NOTE = """\
  Each stage grows with the images, without the time of loading. Jobs count one after another.
  Downloads, and stages that the limited run has not reached, do not count."""


def job_seconds(folder: Path) -> Iterator[tuple[Path, float]]:
    """Yield the benchmark file of each job in the order of their ends, and its seconds."""
    paths = folder.rglob("benchmarks/*.jsonl")
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path)):
        last = path.read_bytes().strip().rpartition(b"\n")[2]
        try:
            seconds = json.loads(last).get("s")
        except ValueError:  # a killed run or a full disk left a part of it
            log.warning("%s is damaged, so its job is left out; delete it.", path)
            continue
        if isinstance(seconds, int | float):  # NA: Snakemake measured nothing
            yield path, float(seconds)


class Counts(NamedTuple):
    """Images of a dataset."""

    train: int
    test: int

    @classmethod
    def of(cls, splits: Mapping[str, int]) -> Self:
        """Return the images of an index by those of its splits; train counts val as well."""
        test = splits.get("test", 0)
        return cls(sum(splits.values()) - test, test)

    @classmethod
    def read(cls, index: Path) -> Self:
        """Return the images of an index."""
        return cls.of(Counter(tables.read(index, ["split"])["split"].to_pylist()))


def counts_of(dataset: Dataset) -> Counts | None:
    """Return a dataset's images, by its index or else its file or folder; None: not known."""
    index = Path(dataset.folder, INDEX)
    if index.is_file():
        return Counts.read(index)
    split, folder = dataset.keys.split, dataset.keys.source.folder
    if {"train", "test"} <= split.counts.keys():
        train, test = split.counts["train"], split.counts["test"]
    elif folder and split.kind == "folders":
        train, test = len(image_files(folder)), 0
    else:
        return None
    most = dataset.run.keys.limit or sys.maxsize
    return Counts(min(train, most), min(test, most))


def lines(dataset: Dataset, pending: Collection[str]) -> Iterator[str]:
    """Yield what a run that will write the pending files would ask about a dataset's images."""
    captioners = dataset.pending_captioners(pending)
    if captioners:
        yield f"{dataset.name}: to ask, where answers are not cached:"
        images = counts_of(dataset)
        yield from (f"  {_questions(each, images)}" for each in captioners)


def _questions(captioner: Captioner, images: Counts | None) -> str:
    """Return the questions of a table and their tokens, as far as they are known, in words."""
    labeller = f" of the labeller {captioner.name}" if captioner.name else ""
    name = f"{TITLES[captioner.kind]}{labeller} by {captioner.settings.model}"
    if images is None:
        return f"{name}: not known before the images are indexed"
    n = n_questions(captioner, images)
    questions = f"{name}: at most {counted(n, 'question')}"
    # Runs of this dataset, and limited ones.
    dataset = captioner.dataset
    limits = sorted(_drawn_from(dataset.whole), reverse=True)
    names = [dataset.name, *(f"{dataset.whole}_{limit}" for limit in limits)]
    for folder in (RESULTS / name for name in names):
        path = folder / captioner.table
        if not path.is_file():
            continue
        used = tables.read_metadata(path, AnswersMetadata)
        if used.questions and used.model == captioner.settings.model:
            read = n * used.tokens_read / used.questions
            written = n * used.tokens_written / used.questions
            tokens = f"{read:,.0f} tokens read and {written:,.0f} written"
            return f"{questions}, about {tokens} as in {folder}"
    return f"{questions}, tokens not known before a limited run"


def n_questions(captioner: Captioner, images: Counts) -> int:
    """Return the questions of a table about so many images, if no answer is cached."""
    return min(images.train, captioner.max_images or images.train)


def _drawn_from(name: str) -> dict[int, Counts]:
    """Return the images of a dataset by the limits of its limited runs."""
    drawn_from: dict[int, Counts] = {}
    for index in RESULTS.glob(f"{name}_*/{INDEX}"):
        limit = index.parent.name.removeprefix(f"{name}_")
        whole = tables.read_metadata(index, IndexMetadata).drawn_from
        # The index of another dataset, such as mine_2024, has none.
        if limit.isdecimal() and whole:
            drawn_from[int(limit)] = Counts.of(whole)
    return drawn_from


def estimate(datasets: Sequence[str]) -> str:
    """Return hours, tokens and disk of full runs by stage, of some or of the configured datasets.

    The limited run of the most images counts, with its options. Without one, only what is asked of
    captioners is known.
    """
    if not datasets:
        datasets = [each.whole for each in Run(layers.defaults(), {}).datasets]
    return "\n\n".join("\n".join(_lines(dataset)) for dataset in datasets)


def _lines(name: str) -> Iterator[str]:
    limited_runs = _drawn_from(name)
    limit = max(limited_runs, default=LIMIT)
    folder = RESULTS / f"{name}_{limit}"
    noted = read_options(folder.name) or read_options(name) or {}
    given = {**noted, "dataset": name, "limit": None}
    [dataset] = Run(layers.defaults(), given).datasets
    images = limited_runs.get(limit)
    if images:
        yield from _stages(dataset, folder, images)
    else:
        images = counts_of(dataset)
        yield (
            f"There is no limited run of {name} to estimate hours and disk from; make one: "
            f"{run_command(RESULTS / name, limit=str(limit))}"
        )
    for captioner in dataset.answer_tables:
        if not captioner.engine.reads_file:
            yield f"  {_questions(captioner, images)}"


def _stages(dataset: Dataset, folder: Path, after: Counts) -> Iterator[str]:
    """Yield the hours of each stage in the full run, and the disk, by a limited run's folder."""
    before = Counts.read(folder / INDEX)
    took = dict(job_seconds(folder))
    starting = min(
        (took[path] for path in took if path.stem == STARTS_ONLY), default=0.0
    )
    images = sum(after) / sum(before)
    labellers = {each.name: each.captioner for each in dataset.labellers}
    hours: dict[str, float] = defaultdict(float)
    for path, seconds in took.items():
        rule, _, name = path.stem.partition("-")  # of a labeller, or a shard
        written = path.parents[1] / "logs" / f"{path.stem}.log"
        text = written.read_text("utf-8", "replace") if written.is_file() else ""
        found = WORK.findall(text)
        work = sum(map(float, found)) if found else max(0.0, seconds - starting)
        growth = images
        if rule in ASKING:
            captioner = labellers.get(name) or dataset.captioner(ASKING[rule])
            n_before = max(1, n_questions(captioner, before))
            growth = n_questions(captioner, after) / n_before
        elif rule in TRAINING:
            method = path.relative_to(folder).parts[0]
            keys = dataset.method(method).keys.finetune
            growth = samples(keys, after.train) / samples(keys, before.train)
        hours[rule] += (seconds + (growth - 1) * work) / 3600
    yield f"{dataset.name}, by {folder}: {sum(after):,} images"
    for name, n_hours in [*hours.items(), ("in all", sum(hours.values()))]:
        yield f"  {name:22}{n_hours:10.2f} h"
    below = folder.rglob("*")
    paths = [path for path in below if path.is_file() and not path.is_symlink()]
    # Models keep their size, and some files have several names.
    size = sum(
        path.stat().st_size * (1 if path.suffix == ".safetensors" else images)
        for path in {path.stat().st_ino: path for path in paths}.values()
    )
    yield f"  disk: {size / 1e9:.1f} GB below {RESULTS / dataset.name}"
    yield NOTE


def samples(section: FinetuneSection, n: int) -> int:
    """Return the images that a fine-tuning on n images sees, in whole batches over all epochs."""
    recipe = recipe_for(section, n, lr=1.0)
    steps = recipe.epochs * steps_per_epoch(n, recipe.batch_size)
    return steps * min(recipe.batch_size, n)
