"""What a student has of the joint predictor's accuracy, and what each takes for an image.

    snakemake -j2 --config dataset=mine image_dir=photos image_encoders=local-dir:encoder
        method=zero_shot,image_prototypes,image_prototypes_encoders,student seeds=3
    python benchmarks/student.py results/mine [--images 64] [--clip ViT-B-32]

reads the accuracies that the run left, of a dataset whose test labels are known, and the choice.
CPU time is that of one thread. Models take turns on the same test images, and so do their networks
alone on one batch. --clip adds the networks of a joint predictor with an image tower of that shape.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pyarrow.compute as pc
import torch

from latteclip.clip.image_encoders import load_beside
from latteclip.core import tables
from latteclip.deploy.predict import Predictor

ALONE = "image_prototypes"
JOINT = "image_prototypes_encoders"
STUDENT = "student"
BATCH = 8
TURNS = 5


def accuracies(results: Path, method: str) -> list[float]:
    """Return the test accuracy of each seed in percent."""
    files = sorted(results.glob(f"{method}/seed*/metrics.json"))
    return [100 * json.loads(file.read_text("utf-8"))["acc1"] for file in files]


def print_accuracies(results: Path) -> None:
    """Print a row for each method, and the student's share of the joint predictor's lead."""
    means = {}
    for method in ("zero_shot", "zero_shot_adapted", ALONE, JOINT, STUDENT):
        if found := accuracies(results, method):
            means[method] = statistics.mean(found)
            each = ", ".join(f"{value:.1f}" for value in found)
            print(f"{method}: {means[method]:.1f} % ({each})")
    if missing := {ALONE, JOINT, STUDENT} - means.keys():
        raise SystemExit(f"{results} has no results of {', '.join(sorted(missing))}.")
    lead = means[JOINT] - means[ALONE]
    share = (means[STUDENT] - means[ALONE]) / lead
    print(f"the student has {100 * share:.0f} % of the lead of {lead:.1f} points")
    selection = json.loads((results / "selection.json").read_text("utf-8"))
    print(f"chosen: {selection['method']}. {selection['reason']}")


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU time of a function."""
    began = time.process_time()
    work()
    return time.process_time() - began


def print_times(works: Mapping[str, Callable[[], Any]], images: int) -> None:
    """Print the median and the range of the CPU time of an image, and ratios to the student."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()  # once, for caches
    for _ in range(TURNS):
        for name, work in works.items():
            times[name].append(1000 * cpu_seconds(work) / images)
    for name, found in times.items():
        ratios = [one / of for one, of in zip(found, times[STUDENT], strict=True)]
        print(
            f"  {name}: {statistics.median(found):.1f} ms ({min(found):.1f} to {max(found):.1f}), "
            f"{statistics.median(ratios):.1f} times the student"
        )


def network(model: torch.nn.Module, side: int) -> Callable[[], Any]:
    """Return a function that encodes a batch."""
    batch = torch.zeros(BATCH, 3, side, side)

    def encode() -> None:
        with torch.no_grad():
            model(batch)

    return encode


def both(*parts: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that calls others, one after another."""
    return lambda: [part() for part in parts]


def tower(clip: torch.nn.Module) -> torch.nn.Module:
    """Return what encodes images."""
    return clip.visual if hasattr(clip, "visual") else clip.network  # type: ignore[return-value]


def side_of(model: Any) -> int:
    """Return the side of the images that an image encoder or a CLIP takes, in pixels."""
    if getattr(model, "timm", None) is not None:
        return int(model.timm.preprocessing.input_size[1])
    size = model.model.visual.image_size
    return int(size if isinstance(size, int) else size[0])


def main() -> None:
    """Print accuracies, the choice, and times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--clip", help="a model of open_clip, for times alone")
    args = parser.parse_args()
    print_accuracies(args.results)
    torch.set_num_threads(1)
    index = tables.read(args.results / "images.parquet", tables.IMAGES)
    paths = index.filter(pc.equal(index["split"], "test"))["path"].to_pylist()
    paths = paths[:: max(1, len(paths) // args.images)][: args.images]
    folders = {
        name: args.results / name / "seed0" / "model" for name in (ALONE, JOINT, STUDENT)
    }
    models = {
        name: Predictor(folder, device="cpu", threads=1) for name, folder in folders.items()
    }
    print(f"latteclip predict, {len(paths)} images:")
    works = {name: partial(one, paths) for name, one in models.items()}
    print_times(works, len(paths))
    alone: dict[str, Callable[[], Any]] = {}
    for name, one in models.items():
        parts = [one.model.clip, *one.image_encoders]
        alone[name] = both(*(network(tower(part.model), side_of(part)) for part in parts))
    if args.clip:
        shape: Any = open_clip.create_model(args.clip, pretrained=None).eval()
        encoders = load_beside(folders[JOINT], torch.device("cpu"), "float32")
        size = shape.visual.image_size
        side = size if isinstance(size, int) else size[0]
        beside = [network(tower(one.model), side_of(one)) for one in encoders]
        alone[f"{args.clip} with the encoders"] = both(network(shape.visual, side), *beside)
    print(f"networks alone, batches of {BATCH}:")
    print_times(alone, BATCH)


if __name__ == "__main__":
    main()
