"""Time the stages around the models for many images: what grows with a dataset, and how.

    python benchmarks/scale.py N [N ...] [--classes 1000] [--folder DIR]

N tiny JPEGs (links to a few distinct ones) in class folders are indexed. Hashes, features, captions
and scores are random, so no model runs, but they go through the files and functions of the stages.
Each step runs in a process of its own. Its time is that of the work alone, without imports. Its
memory is that of its largest process, imports included. docs/scaling.md has figures.
"""

import argparse
import itertools
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DISTINCT = 64  # JPEGs: a file system allows at most 65,000 links to a file
WIDTH = 512  # of features, as ViT-B/32 gives them
SCALE = 100.0  # of CLIP's logits
SHARDS = 64
TRAINED = 200  # steps
BATCH = 128  # images of a step
WORDS = 55  # of a caption
OPTIONS = 5  # of class scores
PROSE = """a the of with on in and small large bright dark red green blue old round long striped
smooth photo object table grass water sky wall shadow pattern detail surface edge corner"""
DEMO_CLIP = ROOT / "latteclip" / "demo" / "models" / "clip"
Work = Callable[[], None]


@dataclass(frozen=True)
class Place:
    """Where the files of a dataset of n images are."""

    folder: Path
    n: int
    n_classes: int

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    @property
    def results(self) -> Path:
        return self.checkout / "results" / "scale"

    def file(self, name: str) -> str:
        """Return the path of a file of the results."""
        return str(self.results / name)

    def shards(self) -> list[str]:
        return [
            self.file(f"captions/shards/images-{i + 1}-of-{SHARDS}.parquet")
            for i in range(SHARDS)
        ]

    @property
    def classnames(self) -> list[str]:
        """Names of two words, as most names of species are."""
        return [f"common kind{i}" for i in range(self.n_classes)]


# --- steps: each imports what it needs and returns the work that is timed ------------------------


def make_images(place: Place) -> Work:
    """Make class folders, and a copy of the workflow."""
    import numpy as np
    from PIL import Image

    def work() -> None:
        place.images.mkdir(parents=True)
        rng = np.random.default_rng(0)
        distinct = [place.folder / f"{number}.jpg" for number in range(DISTINCT)]
        for path in distinct:
            Image.fromarray(
                rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            ).save(path)
        folders = [
            place.images / name.replace(" ", "_") for name in place.classnames
        ]
        for folder in folders:
            folder.mkdir()
        for number in range(place.n):
            path = folders[number % place.n_classes] / f"image_{number:08d}.jpg"
            os.link(distinct[number % DISTINCT], path)
        for name in ("workflow", "config", "profiles", "envs", "latteclip"):
            shutil.copytree(ROOT / name, place.checkout / name)
        shutil.copy(ROOT / "Snakefile", place.checkout)

    return work


def plan_jobs(place: Place) -> Work:
    """Plan the jobs of the whole dataset by a dry run of Snakemake, captions in shards."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "--quiet",
        "all",
        "--cores=2",
    ]
    command += [
        "--config",
        "dataset=scale",
        f"image_dir={place.images}",
        "seeds=3",
    ]
    command += ["class_names=folders", f"compute={{'shards': {SHARDS}}}"]
    options: Any = {
        "cwd": place.checkout,
        "stdout": subprocess.DEVNULL,
        "check": True,
    }
    environment = {**os.environ, "PYTHONPATH": str(place.checkout)}
    return lambda: _done(
        subprocess.run(command, env=environment, **options).returncode == 0
    )


def index_images(place: Place) -> Work:
    """Index the images by two processes."""
    from latteclip.data import index_images as stage
    from latteclip.data.splits import IndexSettings

    settings = IndexSettings(kind="folders")
    outputs = [place.file(name) for name in ("images.parquet", "corrupt.csv")]
    return lambda: stage.index_images(
        str(place.images), settings, *outputs, threads=2
    )


def find_duplicates(place: Place) -> Work:
    """Find near-duplicates by random hashes, of which every twentieth equals that before it."""
    import numpy as np
    import pyarrow as pa

    from latteclip.core import tables
    from latteclip.core.tables import IndexMetadata
    from latteclip.data import find_duplicates as stage

    index = tables.read(place.file("images.parquet"))
    width = tables.IMAGES.field("hashes").type.byte_width
    hashes = np.random.default_rng(2).integers(
        0, 256, (len(index), width), dtype=np.uint8
    )
    hashes[19::20] = hashes[18::20][: len(hashes[19::20])]
    content = pa.array(list(map(bytes, hashes)), pa.binary(width))
    columns = {name: index[name] for name in index.column_names} | {
        "hashes": content
    }
    metadata = tables.read_metadata(place.file("images.parquet"), IndexMetadata)
    tables.write(place.file("hashed.parquet"), columns, tables.IMAGES, metadata)
    files = [place.file(name) for name in ("hashed.parquet", "duplicates.parquet")]
    return lambda: stage.find_duplicates(*files)


def write_pseudo_labels(place: Place) -> Work:
    """Write pseudo-labels by random features around a direction of each class."""
    import torch

    from latteclip.clip.classifier import (
        Classifier,
        FeatureMemmap,
        save_classifier,
    )
    from latteclip.core import tables
    from latteclip.labels import pseudo_label_images as stage

    table, classnames = tables.read_unlabelled(
        place.file("images.parquet"), training=False
    )
    draw = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize
    embeddings = normal(torch.randn(len(classnames), WIDTH, generator=draw), dim=1)
    classes = torch.tensor(_classes(place, len(table)))
    features = FeatureMemmap(len(table), WIDTH)
    for start in range(0, len(table), 2**14):
        part = embeddings[classes[start : start + 2**14]] * WIDTH**0.5
        part = part + 3.0 * torch.randn(part.shape, generator=draw)
        features[start : start + len(part)] = normal(part, dim=1)
    described: dict[str, Any] = {
        "classnames": classnames,
        "model": "random",
        "pretrained": None,
    }
    described |= {"class_templates": {"templates": ["{}"]}, "logit_scale": SCALE}
    path = place.file("class_embeddings.safetensors")
    classifier = Classifier.of(embeddings)
    save_classifier(path, classifier, described)
    output = place.file("pseudo_labels.parquet")
    inputs = output, table, features, classifier, described
    return lambda: stage.write_pseudo_labels(*inputs)


def _classes(place: Place, n: int) -> Any:
    """Return a class of each image, [n], which features and class scores follow."""
    import numpy as np

    return np.random.default_rng(0).integers(0, place.n_classes, n)


def evaluate_classifier(place: Place) -> Work:
    """Evaluate the class texts on the test split."""
    from latteclip.evaluate import evaluate_classifier as stage

    evaluate: Callable[..., None] = stage.evaluate_classifier
    inputs = (
        "images.parquet",
        "pseudo_labels.parquet",
        "class_embeddings.safetensors",
    )
    names = ("predictions.parquet", "metrics.json", "train_predictions.parquet")
    Path(place.file("clip")).mkdir()  # empty
    files = [place.file(name) for name in inputs]
    outputs = [place.file(name) for name in names]
    run = ("scale", "zero_shot", 0)
    outputs.append(place.file("model"))
    clip = place.file("clip")
    return lambda: evaluate(*files, None, clip, *run, *outputs)


def make_captions(place: Place) -> Work:
    """Write captions of the training images, in shards, and random class scores."""
    import numpy as np
    import pyarrow as pa

    from latteclip.captions.answers import AnswersMetadata
    from latteclip.captions.questions import shard_of
    from latteclip.core import tables

    metadata = AnswersMetadata(model="none")
    index, _ = tables.read_unlabelled(place.file("images.parquet"), training=False)
    rng = np.random.default_rng(1)
    labels = _classes(place, len(index))
    wrong = rng.random(len(index)) < 0.4
    labels[wrong] = rng.integers(0, place.n_classes, wrong.sum())
    is_training = np.array(index["split"]) != "test"
    ids = index["image_id"].filter(pa.array(is_training))

    def empty(schema: Any, n: int) -> dict[str, Any]:
        return {field.name: pa.nulls(n, field.type) for field in schema}

    def write_captions(path: str, names: list[str]) -> None:
        n = len(names)
        columns = empty(tables.CAPTIONS, n) | {
            "id": names,
            "members": [[x] for x in names],
        }
        columns |= {"prompt": ["?"] * n, "finish_reason": ["stop"] * n}
        columns |= {"caption": list(itertools.islice(texts, n))}
        tables.write(path, columns, tables.CAPTIONS, metadata)

    texts = _captions(place)

    def work() -> None:
        shards: list[list[str]] = [[] for _ in range(SHARDS)]
        for name in ids.to_pylist():
            shards[shard_of(name, SHARDS) - 1].append(name)
        for path, names in zip(place.shards(), shards, strict=True):
            if names:
                write_captions(path, names)
        options = labels[is_training][:, None] + np.arange(OPTIONS)
        logs = np.log([0.6, *[0.1] * (OPTIONS - 1)]).astype(np.float32)
        columns = empty(tables.CLASS_SCORES, len(ids)) | {"image_id": ids}
        columns |= {"options": list(options % place.n_classes)}
        columns |= {"log_probabilities": [logs] * len(ids)}
        path = place.file("class_scores.parquet")
        tables.write(path, columns, tables.CLASS_SCORES, metadata)

    return work


def _captions(place: Place) -> Iterator[str]:
    """Yield texts without end, of which a third name a class."""
    import numpy as np

    rng = np.random.default_rng(1)
    prose = PROSE.split()
    while True:
        for words in rng.integers(0, len(prose), (4096, WORDS)):
            number = rng.integers(0, 3 * place.n_classes)
            end = f" common kind{number}" if number < place.n_classes else ""
            yield " ".join(prose[i] for i in words) + end


def gather_captions(place: Place) -> Work:
    """Gather the captions of the shards in one table."""
    from latteclip.captions import caption as stage

    shards = [path for path in place.shards() if Path(path).exists()]
    output = place.file("captions/images.parquet")
    return lambda: stage.gather_captions(
        place.file("images.parquet"), shards, output
    )


def fuse_labels(place: Place) -> Work:
    """Label the training images by class scores and what is known of the images."""
    from latteclip.labels import fuse_labels as stage
    from latteclip.labels.label_inputs import LabelFiles, LabellerTable

    names = (
        *("fused_labels.parquet", "fused_labels.json"),
        *("classifiers/image_prototypes.safetensors", "votes.parquet"),
    )
    fuse: Callable[..., None] = stage.fuse_labels
    outputs = [place.file(name) for name in names]
    adapted = place.file("classifiers/adapted.safetensors")
    files = replace(LabelFiles.of(place.results), adapted=adapted)
    table = place.file("class_scores.parquet")
    scores = LabellerTable("scores", "decisions", table, column="lmm")

    def work() -> None:
        stage.adapt_zero_shot(files, adapted)
        fuse(files, [scores], *outputs)

    return work


def teach(place: Place) -> Work:
    """Choose the next ten images of `latteclip teach`, after labels learned from ten answers."""
    from latteclip.audit.teach import TeachingSession
    from latteclip.core.answers import CLASS, Answer

    session = TeachingSession(place.results, 100)
    answers: dict[str, Answer] = {}
    while len(answers) < 20:  # labels were learned once
        one = session.open_questions(answers)[0]
        answers[one.image_id] = Answer(
            one.image_id, CLASS, one.options[0], one.phase
        )
    return lambda: _done(bool(session.open_questions(answers)))


def finetune(place: Place) -> Work:
    """Train the demo's CLIP for TRAINED steps by the command, ended half-way and run again."""
    section = {"epochs": 1000, "warmup_steps": 5, "batch_size": BATCH, "lr": 3e-4}
    settings = {
        "clip": {"model": f"local-dir:{DEMO_CLIP}", "pretrained": None},
        "template": "a photo of a {}.",
        "module": "flyp",
        "method": {"objective": "flyp", "finetune": section},
        "flags": [],
    }
    files = {
        name: place.file(f"{name}.parquet") for name in ("images", "pseudo_labels")
    }
    command = [
        sys.executable,
        "-m",
        "latteclip",
        "finetune",
        "--seed=0",
        "--threads=1",
    ]
    command += ["--fold={}", "--checkpoint-minutes=10"]
    command += [
        f"--files={json.dumps(files)}",
        f"--settings={json.dumps(settings)}",
    ]
    for name in ("model", "history", "checkpoint", "log"):
        command.append(f"--{name}={place.file(f'trained/{name}')}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = Path(place.file("trained/log"))

    def steps() -> int:
        text = log.read_text() if log.exists() else ""
        counted = re.findall(r"([\d.]+)/[\d.]+ \[", text)
        return int(float(counted[-1])) if counted else 0

    def work() -> None:
        for _ in range(2):
            wanted = steps() + TRAINED // 2
            with subprocess.Popen(
                command, env=environment, stderr=subprocess.DEVNULL
            ) as run:
                while steps() < wanted:
                    if run.poll() is not None:
                        raise RuntimeError(
                            f"finetune ended with status {run.returncode}."
                        )
                    time.sleep(0.5)
                run.terminate()
            _done(run.returncode == 128 + signal.SIGTERM)

    return work


def report_dataset(place: Place) -> Work:
    """Write the page of the dataset with the zero-shot row."""
    from latteclip.core import tables
    from latteclip.core.files import write_json
    from latteclip.evaluate.results import RunFiles
    from latteclip.report import report_dataset as stage

    ids = tables.read(place.file("images.parquet"), ["image_id"])["image_id"]
    unknown: dict[str, Any] = {
        name: [None] * len(ids) for name in tables.UNKNOWN.names
    }
    unknown["image_id"] = ids
    described = tables.UnknownMetadata(place.classnames)
    tables.write(place.file("unknown.parquet"), unknown, tables.UNKNOWN, described)
    settings = stage.ReportSettings(
        dataset="scale",
        baseline="zero_shot",
        main="zero_shot",
        suffix="",
        config={
            "methods": {"zero_shot": {"objective": "zero_shot"}},
            "seeds": [0],
        },
    )
    write_json(place.file("encoding.json"), {"seconds_per_image": 0.01})
    files = stage.PageFiles(
        images=place.file("images.parquet"),
        pseudo_labels=place.file("pseudo_labels.parquet"),
        unknown=place.file("unknown.parquet"),
        duplicates=place.file("duplicates.parquet"),
        corrupt=place.file("corrupt.csv"),
        encoding=place.file("encoding.json"),
        image_captions=place.file("captions/images.parquet"),
        fused_labels=place.file("fused_labels.parquet"),
        fusion_report=place.file("fused_labels.json"),
    )
    paths = [
        place.file(name) for name in ("metrics.json", "train_predictions.parquet")
    ]
    run = RunFiles("zero_shot", 0, *paths)
    return lambda: stage.report_dataset(
        files, [], [run], settings, place.file("report.html")
    )


def write_predictions(place: Place) -> Work:
    """Find N images and write invented predictions, as `predict` does beside the model."""
    from latteclip.deploy import predict
    from latteclip.deploy.predictor import Prediction

    def work() -> None:
        paths = predict.image_paths([str(place.images)])
        classes = place.classnames[:3]
        best = [0.9, 0.05, 0.01]
        predictions = (
            Prediction(x, [0, 1, 2], classes, best, best) for x in paths
        )
        names = predict.columns(len(classes), unknown=False, abstain=False)
        rows = (prediction.cells() for prediction in predictions)
        predict.write_csv(place.file("predicted.csv"), names, rows)

    return work


def export_labels(place: Place) -> Work:
    """Export the labels as CSV."""
    from latteclip.deploy import export_labels as stage

    output = place.file("labels.csv")
    return lambda: _done(
        bool(stage.labels("export", str(place.results), "csv", output))
    )


def _done(found: bool) -> None:
    """Raise an error where a step found nothing, which would have been faster."""
    if not found:
        raise RuntimeError("The step did not do what it is timed for.")


# None: not in the table.
STEPS: list[tuple[Callable[[Place], Work], str | None]] = [
    (make_images, None),
    (plan_jobs, "`snakemake -n`, nothing there"),
    (index_images, "index_images, two processes"),
    (index_images, "index_images again, nothing new"),
    (find_duplicates, "find_duplicates"),
    (write_pseudo_labels, "pseudo-labels: scores, table written"),
    (evaluate_classifier, "evaluate_classifier, zero-shot"),
    (make_captions, None),
    (gather_captions, "gather_captions of 64 shards"),
    (fuse_labels, "adapt_zero_shot and fuse_labels"),
    (teach, "latteclip teach: the next ten images"),
    (finetune, f"fine-tuning: {TRAINED} steps, stopped and resumed once"),
    (report_dataset, "report_dataset"),
    (write_predictions, "predict: images found, predictions written"),
    (export_labels, "latteclip labels export, CSV"),
]


def measure(number: int, place: Place) -> None:
    """Take a step in this process, and print its figures as JSON."""
    work = STEPS[number][0](place)
    started, before = time.perf_counter(), sum(os.times()[:4])
    work()
    found = {
        "seconds": time.perf_counter() - started,
        "cpu": sum(os.times()[:4]) - before,
    }
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    found["memory"] = (
        max(resource.getrusage(who).ru_maxrss for who in whose) / 1024
    )
    print(json.dumps(found))


def run(place: Place) -> None:
    """Take all steps, each in a process of its own, and print their table."""
    print(f"\n{place.n} images, {place.n_classes} classes, features of {WIDTH}\n")
    print(
        "| step | seconds | CPU seconds | MiB |\n|---|---:|---:|---:|", flush=True
    )
    options = [
        str(place.n),
        f"--classes={place.n_classes}",
        f"--folder={place.folder}",
    ]
    for number, (_, title) in enumerate(STEPS):
        command = [sys.executable, __file__, *options, f"--step={number}"]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        if title is not None:
            figures = f"{found['seconds']:.1f} | {found['cpu']:.1f} | {found['memory']:.0f}"
            print(f"| {title} | {figures} |", flush=True)
    print("\n| file | bytes per image |\n|---|---:|")
    for path in sorted(place.results.rglob("*.parquet")):
        if path.parent.name != "shards":
            name = path.relative_to(place.results)
            print(f"| {name} | {path.stat().st_size / place.n:.0f} |")


def main() -> None:
    """Print a table for each number of images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=int, nargs="+", metavar="N")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument(
        "--folder", type=Path, help="where files are put (default: temporary)"
    )
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step is not None:
        logging.basicConfig(level=logging.ERROR)
        measure(args.step, Place(args.folder, args.images[0], args.classes))
        return
    for n in args.images:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            run(Place(Path(folder), n, args.classes))


if __name__ == "__main__":
    main()
