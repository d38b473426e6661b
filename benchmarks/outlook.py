"""10^4 to 10^7 images, stage by stage, measured and computed: the table of docs/scaling.md.

    python benchmarks/outlook.py [docs/scaling.jsonl]

Nothing is run or timed. Measured cells are the lines that `benchmarks/scale.py --lines` wrote.
Times of models are images over the rates on paper of benchmarks/paper_rates.py. Memory, and CPU
time where a stage runs no model, lie on the straight line through the smallest and the largest
number measured. Disk is the measured bytes of an image.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import paper_rates

LINES = Path(__file__).parents[1] / "docs" / "scaling.jsonl"
SIZES = [10**power for power in range(4, 8)]
CARD = "A100"
TRAINING = 0.7  # share of the images
EPOCHS = 50
FEATURE = 4 * 512  # bytes of the features of an image, width 512
FINGERPRINT = 608  # bytes of an image's hashes and thumbnail; those of tiny JPEGs are alike
PICTURE = 450_000  # bytes of one that is kept small
ENGINE = 2_100  # MiB of an engine of captions
LITTLE = 0.01  # GB that are not told
BLOCKS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
NONE = "-"  # nothing to say, or not run
MEMORY = ("memory of one job", "several datasets")


@dataclass(frozen=True)
class Step:
    """A step of benchmarks/scale.py."""

    title: str
    shown: str | None = None  # title of its own row. None: it has none
    files: tuple[str, ...] = ()  # that it writes


@dataclass(frozen=True)
class Stage:
    """A stage, what it takes of one job with a card and `paper_rates.CORES`, and its limits.

    Memory, and time where nothing is said of it, are those of the first step.
    """

    name: str
    steps: tuple[Step, ...]
    breaks: str
    then: str
    seconds: float | None = None  # for an image. None: measured, and on the line beyond
    computed: bool = True
    mib: float = 0.0  # on top
    disk: float = 0.0  # bytes for an image on top of the first step's files


class Measured:
    """The lines of one file. The last one about the same counts."""

    def __init__(self, path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self._steps = {(x["title"], x["images"]): x for x in lines if "title" in x}
        self._files = {(x["file"], x["images"]): x["bytes"] for x in lines if "file" in x}

    def sizes(self, title: str) -> list[int]:
        """Return the numbers of images that a step was measured with."""
        return sorted(n for name, n in self._steps if name == title)

    def line(self, measure: str, title: str, n: int) -> float:
        """Return CPU seconds or MiB for n images, on the line through the ends of the measured."""
        first, *_, last = self.sizes(title)
        low, high = (self._steps[title, size][measure] for size in (first, last))
        return float(low + (high - low) * (n - first) / (last - first))

    def bytes(self, file: str) -> float:
        """Return the size of a file for each image."""
        last = max(n for name, n in self._files if name == file)
        return float(self._files[file, last] / last)

    def value(self, measure: str, title: str, n: int) -> float:
        """Return CPU seconds or MiB for n images: measured, or else on the line."""
        found = self._steps.get((title, n))
        return float(found[measure]) if found else self.line(measure, title, n)

    def cell(self, step: Step, n: int) -> str:
        """Return what was measured with n images. A dash: it was not run."""
        found = self._steps.get((step.title, n))
        if found is None:
            return NONE
        disk = sum(self._files.get((file, n), 0) for file in step.files)
        return _cell(found["cpu"], found["memory"], disk)


def stages() -> list[Stage]:
    """Return the rows in the order of the workflow."""
    rates = paper_rates.on_paper(CARD)
    assert rates.captions and rates.samples and rates.images and rates.fed
    encoding = 1 / min(rates.images, rates.fed)
    tables = ("images.parquet", ".decode_cache.sqlite")
    shard = "a shard of 64"
    return [
        Stage(
            "`snakemake -n`, 64 shards",
            (Step("`snakemake -n`, index and pseudo-labels there"),),
            "nothing: it does not see images",
            NONE,
            computed=False,
        ),
        Stage(
            "index_images",
            (
                Step("index_images, two processes", "tiny JPEGs, two processes", tables),
                Step("index_images again, nothing new", "again, nothing new"),
                Step("index_images again, 1 % new", "again, 1 % new"),
            ),
            "time: one job decodes all",
            "more `threads.index_images`; several datasets",
            seconds=1 / rates.fed,
            disk=FINGERPRINT,
        ),
        Stage(
            "find_duplicates",
            (Step("find_duplicates"),),
            "time",
            NONE,
        ),
        Stage(
            "pseudo_label_images",
            (
                Step(
                    "pseudo-labels: scores, table written",
                    None,
                    ("pseudo_labels.parquet",),
                ),
            ),
            "the cores that decode, then `TMPDIR`",
            "more cores beside the GPU; a larger `TMPDIR`",
            seconds=encoding,
            disk=FEATURE,
        ),
        Stage(
            "captions of images and groups",
            (Step(f"captions of groups: plan of {shard}"),),
            "**time**, then memory of the plan of groups",
            "more shards and GPUs; `groups.groups_per_class`; `captioner.square_side`",
            seconds=2 * TRAINING / rates.captions,
            mib=ENGINE,
        ),
        Stage(
            "gather_captions",
            (Step("gather_captions of 64 shards", files=("captions/images.parquet",)),),
            *MEMORY,
        ),
        Stage(
            "summarize_captions",
            (Step("summarize_captions, images and groups"),),
            *MEMORY,
        ),
        Stage(
            "fuse_labels",
            (Step("fuse_labels: votes fused"),),
            "time, N x C x D",
            "a GPU; fewer classes",
            disk=2 * FEATURE,
        ),
        Stage(
            "finetune",
            (
                Step("fine-tuning: captions tokenised"),
                Step(
                    "fine-tuning: 200 steps, stopped and resumed once",
                    "200 steps of 128, stopped and resumed",
                ),
            ),
            "tokens in each process's memory; pictures on the disk",
            "fewer `processes.finetune` on a node; `compute.cache_gib`; fewer epochs",
            seconds=EPOCHS * TRAINING / min(rates.samples, rates.fed),
            disk=TRAINING * PICTURE,
        ),
        Stage(
            "evaluate",
            (Step("pseudo-labels: scores, table written"),),
            *("as pseudo_label_images", "as there"),
            seconds=(1 - TRAINING) * encoding,
            disk=(1 - TRAINING) * FEATURE,
        ),
        Stage("evaluate_classifier", (Step("evaluation of the zero-shot row"),), *MEMORY),
        Stage(
            "propagate_labels",
            (Step("propagate_labels"),),
            "time, N x C; approximate above 100,000 images",
            "leave `label_propagation` out of `method`",
        ),
        Stage(
            "report_dataset",
            (Step("report_dataset of two methods"),),
            "memory of one job; the page is a sample",
            MEMORY[1],
        ),
        Stage(
            "predict, beside the model",
            (Step("predict: images found, predictions written"),),
            *("memory: the list of images", "several lists"),
        ),
        Stage(
            "labels export",
            (Step("latteclip labels export, CSV", files=("labels.csv",)),),
            *MEMORY,
        ),
    ]


def _cell(seconds: float, mib: float, disk: float) -> str:
    """Time, memory and, where it is worth a word, disk."""
    said = f"{_time(seconds)}, {_short(mib / 1024)} GiB"
    return f"{said}, {_short(disk / 1e9)} GB" if disk / 1e9 >= LITTLE else said


def _time(seconds: float) -> str:
    size, unit = next((block for block in BLOCKS if seconds >= 2 * block[0]), BLOCKS[-1])
    return f"{_short(seconds / size)} {unit}"


def _short(value: float) -> str:
    """Return two digits of a number that has no more worth reading."""
    return f"{float(f'{value:.2g}'):,.10g}"


def rows(lines: Path = LINES) -> list[str]:
    """Return the rows, as the page has them."""
    measured = Measured(lines)
    found = []
    for stage in stages():
        step = stage.steps[0]
        limits = [stage.breaks, stage.then]
        if stage.computed:
            disk = stage.disk + sum(map(measured.bytes, step.files))
            cells = []
            value = measured.value if stage.seconds is None else measured.line
            for n in SIZES:
                cpu, memory = (value(name, step.title, n) for name in ("cpu", "memory"))
                seconds = cpu if stage.seconds is None else stage.seconds * n
                cells.append(_cell(seconds, stage.mib + memory, disk * n))
            kind = "both" if stage.seconds is None else "computed"
            found.append(_row([stage.name, kind, *cells, *limits]))
            limits = ["", ""]
        for step in stage.steps:
            shown = step.shown if stage.computed else stage.name
            if shown:
                cells = [measured.cell(step, n) for n in SIZES]
                found.append(_row([shown, "measured", *cells, *limits]))
    return found


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path, nargs="?", default=LINES, help="lines of JSON")
    print("\n".join(rows(parser.parse_args().lines)))


if __name__ == "__main__":
    main()
