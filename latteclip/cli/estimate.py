"""Estimate the cost of a full run of a dataset from a limited run, as NOTE says."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import pandas as pd

from latteclip.cli import questions
from latteclip.config import budgets, job_resources, layers
from latteclip.config.amounts import price
from latteclip.config.configuration import Configuration
from latteclip.config.job_resources import Counts
from latteclip.config.model import check
from latteclip.config.sections.finetune import FinetuneSection
from latteclip.core import answer_tables, run_options, tables
from latteclip.core.errors import CORES
from latteclip.core.files import from_values
from latteclip.core.metadata import IndexMetadata
from latteclip.report.runs import AnswerCosts, answer_costs, job_costs
from latteclip.train.settings import recipe_for

RESULTS = Path("results")
LIMIT = 64  # images of the limited run that the command makes
# What the stages grow with; all others take the same time for any number of images.
IMAGES = "images"
TRAINING = "training images"
GROUPS = "groups"
STEPS = "training steps"
NOTHING = "-"
GROWS = {
    "index_images": IMAGES,
    "index_unnamed_images": IMAGES,
    "find_duplicates": IMAGES,
    "pseudo_label_images": IMAGES,
    "encode_images": IMAGES,
    "score_unknown": IMAGES,
    "evaluate": IMAGES,
    "evaluate_classifier": IMAGES,
    "caption_images": TRAINING,
    "name_images": TRAINING,
    "score_classes": TRAINING,
    "write_votes": TRAINING,
    "rank_images": TRAINING,
    "fuse_labels": TRAINING,
    "adapt_zero_shot": TRAINING,
    "average_weights": TRAINING,
    "encode_unnamed_images": TRAINING,
    "propose_classes": TRAINING,
    "discover_classes": TRAINING,
    "list_training_images": TRAINING,
    "caption_groups": GROUPS,
    "finetune": STEPS,
    "find_learning_rate": STEPS,
}
# A job that does nothing but load CLIP and write it, and the jobs that load it as well.
LOADS_ONLY = "assemble_model"
LOADS_CLIP = {*job_resources.LOADING, "rank_images", "fuse_labels"}
ASKED = re.compile(r"^Asked (\d+) requests about (\d+) rows in ([\d.]+) s", re.MULTILINE)
INDEXED = re.compile(r"^Indexed .* in ([\d.]+) s", re.MULTILINE)
NOTE = """\
  Loading takes the same time for any number of images. The work of the index, of captions and of
  fine-tuning was measured. Other stages have bounds. The lower bound counts all of a job as
  loading. The upper bound counts the time of assemble_model, which only loads CLIP, or of the
  shortest job. Jobs count one after another. Downloads, tables and pages do not count."""


@dataclass(frozen=True)
class FullRun:
    """What a full run of a dataset takes, by its limited run in a folder."""

    dataset: str
    folder: Path
    configuration: Configuration
    before: Mapping[str, int]  # `amounts` of the limited run
    after: Mapping[str, int]  # `amounts` of the full run
    jobs: pd.DataFrame  # rows of `_jobs`
    answers: list[AnswerCosts]
    disk: float  # bytes

    @property
    def gpu_seconds(self) -> tuple[float, float] | None:
        """Return bounds of the time on GPUs. None: it was not measured."""
        if not self.jobs["gpus"].notna().any():
            return None
        least, most = (
            float((self.jobs[end] * self.jobs["gpus"]).sum()) for end in ("least", "most")
        )
        return least, most

    @property
    def is_finished(self) -> bool:
        """Return whether every stage of the limited run has run."""
        return (self.folder / f"report{self.configuration.suffix}.html").is_file()

    @property
    def asks_nothing(self) -> list[str]:
        """Return the stages that had all answers from earlier runs."""
        stages: list[str] = self.jobs["stage"][self.jobs["asks_nothing"]].unique().tolist()
        return stages


def estimate(
    datasets: Sequence[str],
    config: Sequence[str],
    configfiles: Sequence[str],
    *,
    json_output: bool = False,
) -> str:
    """Return hours, tokens and disk of full runs by stage, of some or of the configured datasets.

    `config` is laid over the options of the limited run. Its `limit` names that run, otherwise the
    run of the most images counts. Without one, only what is asked of captioners is known.
    """
    given = check(layers.given(config, configfiles))
    if not datasets:
        asked = Configuration(layers.defaults(), given)
        datasets = [asked.whole(name) for name in asked.datasets]
    if json_output:
        return json.dumps(
            {"datasets": [_values(name, given) for name in datasets]}, indent=2
        )
    return "\n\n".join("\n".join(_lines(name, given)) for name in datasets)


def _limited(dataset: str, given: Mapping[str, Any]) -> Path:
    """Return the folder of the limited run of a dataset, whether or not there is one."""
    places = (
        path.name.removeprefix(f"{dataset}_") for path in RESULTS.glob(f"{dataset}_*")
    )
    limits = [int(place) for place in places if place.isdecimal()]
    limit = given.get("limit") or max(limits, default=LIMIT)
    return RESULTS / f"{dataset}_{limit}"


def _full_run(dataset: str, given: Mapping[str, Any]) -> FullRun | None:
    """Return what a full run takes. None: there is no limited run."""
    folder = _limited(dataset, given)
    limit = int(folder.name.rpartition("_")[2])
    index = folder / "images.parquet"
    drawn_from = None
    if index.is_file():
        drawn_from = tables.read_metadata(index, IndexMetadata).drawn_from
    if drawn_from is None:
        return None
    values = _options(given, folder.name)
    values |= {"dataset": dataset, "limit": limit}
    configuration = Configuration(layers.defaults(), values)
    small = job_resources.counts(configuration, folder.name)
    assert small is not None  # there is an index
    test = drawn_from.get("test", 0)
    whole = Counts(sum(drawn_from.values()) - test, test, small.classes)
    before, after = (
        amounts(configuration, folder.name, images) for images in (small, whole)
    )
    factors = {kind: after[kind] / before[kind] for kind in after}
    return FullRun(
        dataset=dataset,
        folder=folder,
        configuration=configuration,
        before=before,
        after=after,
        jobs=pd.DataFrame(_jobs(configuration, folder, before, after)),
        answers=list(_whole(folder, factors)),
        disk=_disk(folder, factors[IMAGES]),
    )


def _lines(dataset: str, given: Mapping[str, Any]) -> Iterator[str]:
    run = _full_run(dataset, given)
    if run is not None:
        yield from _lines_of_run(run)
    yield from questions.lines(_whole_run(dataset, given), dataset)
    if run is None:
        limit = _limited(dataset, given).name.rpartition("_")[2]
        yield (
            f"There is no limited run of {dataset} to estimate hours and disk from; make one: "
            f"latteclip workflow {CORES} --config dataset={dataset} limit={limit}"
        )


def _lines_of_run(run: FullRun) -> Iterator[str]:
    yield (
        f"{run.dataset}, by {run.folder}: {run.after[IMAGES]:,} images, {run.after[TRAINING]:,} of "
        f"them for training, from {run.before[IMAGES]:,} and {run.before[TRAINING]:,}"
    )
    yield textwrap.indent(_stages(run.jobs), "  ")
    gpu_time = _range(*run.gpu_seconds) if run.gpu_seconds else "not measured"
    yield f"  GPU time: {gpu_time}"
    read = sum(each.read for each in run.answers)
    written = sum(each.written for each in run.answers)
    yield f"  tokens: {read:,} read, {written:,} written"
    yield f"  cost of the answers: {_money(run.configuration, run.dataset, run.answers)}"
    yield f"  disk: {run.disk / 1e9:.1f} GB below {RESULTS / run.dataset}"
    if not run.is_finished:
        yield f"  {run.folder} is not finished: stages that did not run are not counted."
    for stage in run.asks_nothing:
        yield f"  {stage} had all answers from earlier runs: the time of asking is not counted."
    yield NOTE


def _whole_run(dataset: str, given: Mapping[str, Any]) -> Configuration:
    """Return the configuration of a full run, by the options of the limited run or of the last."""
    values = _options(given, _limited(dataset, given).name, dataset)
    values |= {"dataset": dataset, "limit": None}
    return Configuration(layers.defaults(), values)


def _options(given: Mapping[str, Any], *folders: str) -> dict[str, Any]:
    """Return the options of the run in the first folder that notes some, below the given ones."""
    noted = next(filter(None, map(run_options.read_options, folders)), None)
    return layers.merge(noted["config"] if noted else None, given)


def _values(dataset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the estimate for programs. Times are in seconds.

    Without a limited run there is only what is asked.
    """
    run = _full_run(dataset, given)
    values = {"dataset": dataset, "limited_run": None}
    if run is not None:
        values = _values_of_run(run)
    return {**values, "asks": questions.values(_whole_run(dataset, given), dataset)}


def _values_of_run(run: FullRun) -> dict[str, Any]:
    sums = _sums(run.jobs).round(1)
    stages = [
        {"stage": stage, "grows_with": GROWS.get(str(stage)), **row.to_dict()}
        for stage, row in sums.iterrows()
    ]
    least, most = run.gpu_seconds or (None, None)
    return {
        "dataset": run.dataset,
        "limited_run": str(run.folder),
        "images": run.after[IMAGES],
        "training_images": run.after[TRAINING],
        "limited_images": run.before[IMAGES],
        "limited_training_images": run.before[TRAINING],
        "stages": stages,
        "gpu_seconds": {"least": least, "most": most},
        "tokens": {
            "read": sum(each.read for each in run.answers),
            "written": sum(each.written for each in run.answers),
        },
        "cost": _cost(run.configuration, run.dataset, run.answers) or None,
        "disk_bytes": round(run.disk),
        "is_finished": run.is_finished,
        "asks_nothing": run.asks_nothing,
    }


def amounts(configuration: Configuration, dataset: str, images: Counts) -> dict[str, int]:
    """Return how much a run on so many images has of what stages grow with."""
    groups = images.train
    of_a_class = configuration.section("groups", dataset)["groups_per_class"]
    if of_a_class is not None and images.classes is not None:
        groups = min(groups, int(of_a_class) * images.classes)
    return {
        NOTHING: 1,
        IMAGES: images.train + images.test,
        TRAINING: images.train,
        GROUPS: groups,
    }


def _jobs(
    configuration: Configuration,
    folder: Path,
    before: Mapping[str, int],
    after: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """Yield every job that was measured: seconds of the limited run, and bounds of the full run."""
    costs = [(cost, cost.seconds) for cost in job_costs(folder) if cost.seconds]
    clip = min((seconds for cost, seconds in costs if cost.rule == LOADS_ONLY), default=0.0)
    shortest = min((seconds for _, seconds in costs), default=0.0)
    for cost, seconds in costs:
        grows = GROWS.get(cost.rule, NOTHING)
        place = cost.path.parents[1]
        log = place / "logs" / f"{cost.path.stem}.log"
        text = log.read_text("utf-8", errors="replace") if log.is_file() else ""
        growth = after.get(grows, 1) / before.get(grows, 1)
        work = 0.0 if grows == NOTHING else None
        asks_nothing = False
        if match := ASKED.search(text):
            asked = int(match[1])
            rows = int(match[2])
            work = float(match[3])
            asks_nothing = rows > asked == 0  # answers had been cached
            if 0 < asked < rows:  # some answers had been cached
                growth *= rows / asked
        elif match := INDEXED.search(text):
            work = float(match[1])
        elif grows == STEPS:
            method = cost.run.partition(",")[0]
            seen = samples(configuration, folder.name, method, before[TRAINING])
            growth = samples(configuration, folder.name, method, after[TRAINING]) / seen
            work = _training(place / "history.parquet", seen)
        if work is None:
            loading = min(seconds, clip if cost.rule in LOADS_CLIP else shortest)
        else:
            loading = max(0.0, seconds - work)
        most = loading + growth * (seconds - loading)
        gpus = float("nan")
        if cost.gpu_seconds is not None:
            gpus = cost.gpu_seconds / seconds
        yield {
            "stage": cost.rule,
            "jobs": 1,
            "limited": seconds,
            "loading": loading,
            "least": seconds if work is None else most,
            "most": most,
            "gpus": gpus,
            "asks_nothing": asks_nothing,
        }


def samples(configuration: Configuration, dataset: str, method: str, n: int) -> int:
    """Return the images that a fine-tuning on n images sees, in whole batches over all epochs."""
    section = configuration.method(method, dataset)["finetune"]
    recipe = recipe_for(from_values(FinetuneSection, section, "finetune"), n, lr=1.0)
    return recipe.epochs * recipe.steps_per_epoch(n) * min(recipe.batch_size, n)


def _training(history: Path, images: int) -> float | None:
    """Return the seconds of the steps that showed so many images. None: there is no history."""
    if not history.is_file():
        return None
    table = tables.read(history, tables.HISTORY, ["images_per_second"])
    rates = [rate for rate in table["images_per_second"].to_pylist() if rate]
    return images / harmonic_mean(rates) if rates else None


def _sums(jobs: pd.DataFrame) -> pd.DataFrame:
    """Return the number of jobs and the seconds of each stage."""
    columns = ["jobs", "limited", "loading", "least", "most"]
    return jobs.groupby("stage", sort=False)[columns].sum()


def _stages(jobs: pd.DataFrame) -> str:
    sums = _sums(jobs)
    grows = [*(GROWS.get(stage, NOTHING) for stage in sums.index), ""]
    sums.loc["in all"] = sums.sum()
    columns = {
        "jobs": sums["jobs"].astype(int),
        "limited": sums["limited"].map(_time),
        "loading": sums["loading"].map(_time),
        "grows with": grows,
        "full run": [_range(*bounds) for bounds in sums[["least", "most"]].to_numpy()],
    }
    return pd.DataFrame(columns).rename_axis(None).to_string()


def _range(least: float, most: float) -> str:
    return " to ".join(dict.fromkeys((_time(least), _time(most))))


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _whole(folder: Path, factors: Mapping[str, float]) -> Iterator[AnswerCosts]:
    """Yield what the answers of the full run cost, by those of the limited run."""
    for each in answer_costs(folder):
        factor = factors[
            GROUPS if each.table == answer_tables.TABLES[answer_tables.GROUPS] else TRAINING
        ]
        read = round(factor * each.read)
        written = round(factor * each.written)
        yield AnswerCosts(each.table, read, written, factor * each.money)


def _cost(
    configuration: Configuration, dataset: str, answers: Sequence[AnswerCosts]
) -> float:
    """Return the money that answers cost, 0 where it is unknown."""
    money = 0.0
    captioners = _captioners(configuration, dataset, answers)
    for each, captioner in zip(answers, captioners, strict=True):
        if captioner["price_input"] is None:
            money += each.money
        else:
            prices = captioner["price_input"], captioner["price_output"]
            money += price(each.read, each.written, *prices)
    return money


def _captioners(
    configuration: Configuration, dataset: str, answers: Sequence[AnswerCosts]
) -> list[Mapping[str, Any]]:
    """Return the captioner of each table of answers."""
    voters = {voter.table: voter.name for voter in configuration.own_voters(dataset)}
    names = [voters.get(each.table, "") for each in answers]
    return [configuration.section("captioner", dataset, name) for name in names]


def _money(
    configuration: Configuration, dataset: str, answers: Sequence[AnswerCosts]
) -> str:
    """Return the money that answers cost, by the prices of the configuration or as measured."""
    money = _cost(configuration, dataset, answers)
    if not money:
        return "unknown; captioner.price_input is the price of a million tokens"
    captioners = _captioners(configuration, dataset, answers)
    sources = dict.fromkeys(
        "as the server counted"
        if captioner["price_input"] is None
        else "by captioner.price_input and price_output"
        for captioner in captioners
    )
    source = " and ".join(sources)
    limits = [
        budgets.max_cost(configuration, dataset, asking)
        for asking in budgets.askings(configuration, dataset)
    ]
    if any(limit is not None for limit in limits):
        source += ", where no max_cost ends it"
    return f"{money:.4g}, {source}"


def _disk(folder: Path, factor: float) -> float:
    """Return the bytes of the full run's results: models keep their size, tables and pages grow."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(
        f.stat().st_size * (1 if f.suffix == ".safetensors" else factor) for f in files
    )
