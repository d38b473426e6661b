"""What a run asks captioners, and what a whole run takes by its limited run.

`snakemake -n` prints the first, and `latteclip status --estimate` both.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from latteclip.captions.requests import LLAVA_NEXT, OVERVIEW, square
from latteclip.config import layers, resources
from latteclip.config.asking import Asking, askings
from latteclip.config.keys import Config
from latteclip.config.resolve import Dataset, Method, Run
from latteclip.config.resources import Counts
from latteclip.config.schema import validate
from latteclip.core import run_options, tables
from latteclip.core.errors import CORES
from latteclip.core.file_names import GROUPS, IMAGES, NAMES, SCORES
from latteclip.core.metadata import IndexMetadata
from latteclip.data.folder_files import image_files
from latteclip.report.runs import JobCost, job_costs, read_answers
from latteclip.train.settings import recipe_for

RESULTS = Path("results")
LIMIT = 64  # images of the limited run that the command makes
Values = dict[str, Any]

# What is asked.

TITLES = {
    IMAGES: "captions of images",
    GROUPS: "captions of groups",
    NAMES: "names of images",
    SCORES: "class scores",
}
# Tokens that LLaVA-1.6 reads of a picture of OVERVIEW pixels with a prompt (docs/models.md).
LLAVA_TOKENS = 1_200
# Tokens that decision models read beside the tiles of a picture, with two orders of the options.
DECISION_TOKENS = 95 + 2 * 92


def lines(dataset: Dataset, pending: Collection[str]) -> Iterator[str]:
    """Yield what a run that will write the pending files would ask about a dataset's images."""
    asked = [asking for asking in askings(dataset) if asking.is_pending(pending)]
    if asked:
        yield f"{dataset.name}: to ask, where answers are not cached:"
    for asking in asked:
        yield f"  {_sentence(_plan(asking))}"


def _plan(asking: Asking, images: Counts | None = None) -> Values:
    """Return the requests of a table and their tokens, None where a number is not known."""
    dataset = asking.asker.dataset
    images = images or resources.counts(dataset)
    files = count_files(dataset) if images is None else None
    if files is not None:
        images = Counts(files, 0)
    n = None if images is None else n_requests(asking, images)
    read, written, source = _tokens(asking)
    return {
        "kind": asking.kind,
        "table": asking.table,
        "labeller": asking.asker.name or None,
        "model": asking.asker.captioner.model,
        "requests": n,
        "is_most": files is not None,
        "max_images": asking.max_images,
        "tokens_read": None if n is None or read is None else round(n * read),
        "tokens_written": None if n is None or written is None else round(n * written),
        "source": source,
    }


def _sentence(plan: Values) -> str:
    labeller = f" of the labeller {plan['labeller']}" if plan["labeller"] else ""
    name = f"{TITLES[plan['kind']]}{labeller} by {plan['model']}"
    if plan["requests"] is None:
        return f"{name}: not known before the images are indexed"
    is_most = plan["is_most"] or plan["max_images"] is not None
    requests = f"{'at most ' if is_most else ''}{plan['requests']:,} requests"
    tokens = "tokens not known before a limited run"
    if plan["tokens_read"] is not None:
        read, written = plan["tokens_read"], plan["tokens_written"]
        tokens = f"about {read:,} tokens read and {written:,} written ({plan['source']})"
    return f"{name}: {requests}, {tokens}"


def n_requests(asking: Asking, images: Counts) -> int:
    """Return the requests of a table about so many images, if no answer is cached."""
    n = images.train
    per_class = asking.asker.dataset.keys.groups.groups_per_class
    if asking.kind == GROUPS and per_class is not None and images.classes is not None:
        n = min(n, per_class * images.classes)
    return n if asking.max_images is None else min(n, asking.max_images)


def count_files(dataset: Dataset) -> int | None:
    """Return the image files in the folder of a dataset, None where it has another source."""
    source = dataset.keys.source
    if source is None or not source.folder or dataset.keys.split.kind != "folders":
        return None
    return len(image_files(source.folder, deep=True))


def _tokens(asking: Asking) -> tuple[float | None, float | None, str]:
    """Return the tokens that a request reads and writes, if known, and how they are known.

    A table of this dataset, or of a limited run of it, has them. Some models are typical.
    """
    captioner, dataset = asking.asker.captioner, asking.asker.dataset
    limited = RESULTS.glob(f"{dataset.whole}_*")
    for folder in (RESULTS / dataset.name, *sorted(limited, key=_limit, reverse=True)):
        if (folder / asking.table).is_file():
            used = read_answers(folder / asking.table)
            if used and used.requests and used.source.model == captioner.model:
                n = used.requests
                return used.tokens_read / n, used.tokens_written / n, f"as in {folder}"
    side = square(captioner) or captioner.max_image_side
    if asking.asker.engine.decides and side:
        from latteclip.captions.engines.decisions import fitted, tiles

        n_tiles = tiles(fitted(side, side))
        return n_tiles + DECISION_TOKENS, 0, f"at most, of pictures of {side} pixels"
    is_llava = LLAVA_NEXT.search(captioner.model) is not None
    if is_llava and square(captioner) == OVERVIEW and asking.kind == IMAGES:
        return LLAVA_TOKENS, captioner.max_new_tokens, "typical, of full length"
    return None, None, ""


def _limit(folder: Path) -> int:
    digits = folder.name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0


# What a whole run takes.

ALL, TRAINING, STEPS = "images", "training images", "training steps"
# What stages grow with; all others take the same time for any number of images.
GROWS = {
    "index_images": ALL,
    "index_unnamed_images": ALL,
    "find_duplicates": ALL,
    "pseudo_label_images": ALL,
    "encode_images": ALL,
    "score_unknown": ALL,
    "evaluate": ALL,
    "evaluate_classifier": ALL,
    "write_votes": TRAINING,
    "fuse_labels": TRAINING,
    "adapt_zero_shot": TRAINING,
    "average_weights": TRAINING,
    "encode_unnamed_images": TRAINING,
    "propose_classes": TRAINING,
    "discover_classes": TRAINING,
    "finetune": STEPS,
    "find_learning_rate": STEPS,
}
# Rules that ask a captioner, by what they ask for: they grow with their requests.
ASKING = {
    "caption_images": IMAGES,
    "caption_groups": GROUPS,
    "name_images": NAMES,
    "score_classes": SCORES,
}
LOADS_ONLY = "assemble_model"  # a job that does nothing but load CLIP and write it
# What logs say of the seconds of work.
WORK = re.compile(
    r"^(?:Asked (\d+) requests about (\d+) rows|Indexed .*) in ([\d.]+) s", re.MULTILINE
)
NOTE = """\
  Each stage grows from what the limited run took, without the time of loading: at most that of
  assemble_model, which only loads CLIP. Jobs count one after another. Downloads do not count."""


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
    given = layers.given(config, configfiles)
    validate(Config, given)
    if not datasets:
        datasets = [each.whole for each in Run(layers.defaults(), given).datasets]
    values = [_values(dataset, given) for dataset in datasets]
    if json_output:
        return json.dumps({"datasets": values}, indent=2)
    return "\n\n".join("\n".join(_lines(each)) for each in values)


def _values(dataset: str, given: Mapping[str, Any]) -> Values:
    """Return the estimate of a dataset for programs. Times are in seconds."""
    folder = _limited(dataset, given)
    limit = _limit(folder)
    noted = run_options.read_options(folder.name) or run_options.read_options(dataset)
    options = layers.merge(noted, given)
    whole, limited = (
        Run(layers.defaults(), {**options, "dataset": dataset, "limit": n}).datasets[0]
        for n in (None, limit)
    )
    index = folder / "images.parquet"
    drawn_from = None
    if index.is_file():
        drawn_from = tables.read_metadata(index, IndexMetadata).drawn_from
    before = resources.counts(limited)
    after = None
    if before is not None and drawn_from is not None:
        test = drawn_from.get("test", 0)
        after = Counts(sum(drawn_from.values()) - test, test, before.classes)
    asks = [_plan(asking, after) for asking in askings(whole)]
    values = {"dataset": dataset, "limited_run": None, "limit": limit, "asks": asks}
    if before is None or after is None:
        return values
    stages: dict[str, Values] = {}
    for job in _jobs(limited, folder, before, after):
        stage = stages.setdefault(job.pop("stage"), dict.fromkeys(job, 0))
        stage |= {key: stage[key] + value for key, value in job.items()}
    return {
        **values,
        "limited_run": str(folder),
        "images": after.train + after.test,
        "training_images": after.train,
        "limited_images": before.train + before.test,
        "stages": [
            {"stage": name, "grows_with": "requests" if name in ASKING else GROWS.get(name)}
            | stage
            for name, stage in stages.items()
        ],
        "disk_bytes": _disk(folder, after.train / before.train),
        "is_finished": (folder / f"report{limited.run.suffix}.html").is_file(),
    }


def _limited(dataset: str, given: Mapping[str, Any]) -> Path:
    """Return the folder of the limited run of a dataset, whether or not there is one."""
    limits = map(_limit, RESULTS.glob(f"{dataset}_*"))
    limit = given.get("limit") or max(limits, default=0) or LIMIT
    return RESULTS / f"{dataset}_{limit}"


def _jobs(
    dataset: Dataset, folder: Path, before: Counts, after: Counts
) -> Iterator[Values]:
    """Yield every job that was measured: its seconds, and those of the full run."""
    costs = [(cost, cost.seconds) for cost in job_costs(folder) if cost.seconds]
    only = [seconds for cost, seconds in costs if cost.rule == LOADS_ONLY]
    shortest = min(only or [seconds for _, seconds in costs], default=0.0)
    for cost, seconds in costs:
        growth = _size(dataset, cost, after) / _size(dataset, cost, before)
        loading = min(seconds, shortest)
        asks_nothing = False
        log = cost.path.parents[1] / "logs" / f"{cost.path.stem}.log"
        text = log.read_text("utf-8", errors="replace") if log.is_file() else ""
        if match := WORK.search(text):
            loading = max(0.0, seconds - float(match[3]))
            asked, rows = int(match[1] or 0), int(match[2] or 0)
            asks_nothing = rows > asked == 0  # answers had been cached
            growth *= rows / asked if asked else 1.0
        full = loading + growth * (seconds - loading)
        yield {
            "stage": cost.rule,
            "jobs": 1,
            "limited": seconds,
            "full": full,
            "gpu_seconds": full * (cost.gpu_seconds or 0.0) / seconds,
            "asks_nothing": asks_nothing,
        }


def _size(dataset: Dataset, cost: JobCost, images: Counts) -> float:
    """Return how much of what a job grows with there is in a run on so many images."""
    if cost.rule in ASKING:
        name = cost.path.stem.partition("-")[2]  # of a labeller, or a shard
        labellers = [labeller.name for labeller in dataset.own_labellers]
        asker = dataset.asker_of(name if name in labellers else "")
        return max(1, n_requests(Asking(asker, ASKING[cost.rule]), images))
    grows_with = GROWS.get(cost.rule)
    if grows_with == STEPS:
        return samples(dataset.method(cost.run.partition(",")[0]), images.train)
    sizes = {ALL: images.train + images.test, TRAINING: images.train}
    return sizes.get(str(grows_with), 1)


def samples(method: Method, n: int) -> int:
    """Return the images that a fine-tuning on n images sees, in whole batches over all epochs."""
    recipe = recipe_for(method.keys.finetune, n, lr=1.0)
    return recipe.epochs * recipe.steps_per_epoch(n) * min(recipe.batch_size, n)


def _disk(folder: Path, factor: float) -> int:
    """Return the bytes of the full run's results: models keep their size, the rest grows."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return round(
        sum(f.stat().st_size * (1 if f.suffix == ".safetensors" else factor) for f in files)
    )


def _lines(values: Values) -> Iterator[str]:
    dataset = values["dataset"]
    if values["limited_run"]:
        yield from _lines_of_run(values)
    if values["asks"]:
        yield f"{dataset}: to ask, where answers are not cached:"
    for plan in values["asks"]:
        yield f"  {_sentence(plan)}"
    if not values["limited_run"]:
        yield (
            f"There is no limited run of {dataset} to estimate hours and disk from; make one: "
            f"latteclip workflow {CORES} --config dataset={dataset} limit={values['limit']}"
        )


def _lines_of_run(values: Values) -> Iterator[str]:
    yield (
        f"{values['dataset']}, by {values['limited_run']}: {values['images']:,} images in place of "
        f"{values['limited_images']:,}"
    )
    yield _row("", "jobs", "limited run", "full run", "grows with")
    for stage in values["stages"]:
        times = _time(stage["limited"]), _time(stage["full"])
        yield _row(stage["stage"], stage["jobs"], *times, stage["grows_with"] or "-")
    jobs, limited, full, gpu_seconds = (
        sum(stage[key] for stage in values["stages"])
        for key in ("jobs", "limited", "full", "gpu_seconds")
    )
    yield _row("in all", jobs, _time(limited), _time(full), "")
    if gpu_seconds:
        yield f"  GPU time: {_time(gpu_seconds)}"
    yield f"  disk: {values['disk_bytes'] / 1e9:.1f} GB below {RESULTS / values['dataset']}"
    if not values["is_finished"]:
        yield f"  {values['limited_run']} is not finished: stages that did not run do not count."
    for stage in values["stages"]:
        if stage["asks_nothing"]:
            yield f"  {stage['stage']} had cached answers: the time of asking does not count."
    yield NOTE


def _row(stage: str, jobs: object, limited: str, full: str, grows_with: str) -> str:
    return f"  {stage:22}{jobs:>5}{limited:>20}{full:>20}  {grows_with}"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
