"""Results of a run, as the stages write them, made from random numbers."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from support.tiny import write_captions, write_index, write_pictures, write_pseudo_labels

from latteclip.config.keys import DiscoverSection
from latteclip.core import tables
from latteclip.core.tables import EncoderMetadata
from latteclip.discover.discover_classes import discover_classes
from latteclip.discover.proposal import FILE
from latteclip.discover.propose import propose_classes
from latteclip.evaluate.results import RunFiles, read_evaluated_images, write_run

HOSTILE = "<script>alert('class')</script>"
HOSTILE_FILE = '"><img src=x onerror=alert(1)>.png'
CLASSNAMES = [HOSTILE, 'f-16a/b & "co"', "c{{ 7 * 7 }}", "dots", "lines", "waves", "rings"]


METHODS = ("zero_shot", "flyp", "latteclip")
SEEDS = 2  # of the trained ones


@dataclass
class Results:
    """Results of METHODS on one dataset; its attributes are what a page is made of."""

    folder: Path
    classnames: list[str] = field(default_factory=lambda: list(CLASSNAMES))
    n_train: int = 31
    n_test: int = 53
    labelled: bool = True

    def __post_init__(self):
        self.rng = np.random.default_rng(0)
        n, c = self.n_train + self.n_test, len(self.classnames)
        pictures = self.folder / "pictures"
        files = [Path(file) for file in write_pictures(pictures, 9)]
        files[0] = files[0].rename(pictures / HOSTILE_FILE.replace("/", ""))
        self.splits = ["train"] * self.n_train + ["test"] * self.n_test
        self.image_ids = [f"{i}/{HOSTILE_FILE}" for i in range(n)]
        self.paths = [str(files[i % 9]) for i in range(n)]
        self.labels = np.resize(np.arange(c), n)
        self.before = self.predictions(0.4)  # [n]
        self.images = str(self.folder / "images.parquet")
        self.pseudo_labels = str(self.folder / "pseudo_labels.parquet")
        self.write_index()
        confidence = self.rng.random(n, dtype=np.float32)
        write_pseudo_labels(
            *(self.pseudo_labels, self.image_ids, self.before, confidence),
            topk=5,
        )
        self.runs = [
            self.write_run(method, seed)
            for method in METHODS
            for seed in range(1 if method == "zero_shot" else SEEDS)
        ]

    def predictions(self, accuracy):
        """Of all n images: right with a probability, else any class."""
        right = self.rng.random(len(self.labels)) < accuracy
        other = self.rng.integers(0, len(self.classnames), len(self.labels))
        return np.where(right, self.labels, other)

    def write_index(self, metadata=None):
        labels = self.labels.tolist() if self.labelled else [None] * len(self.labels)
        write_index(
            *(self.images, self.paths, self.splits, labels, self.classnames),
            image_ids=self.image_ids,
            **metadata or {},
        )

    def write_run(self, method, seed):
        folder = self.folder / method / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        after = self.before if method == "zero_shot" else self.predictions(0.7)
        test = slice(self.n_train if self.n_test else 0, None)  # what is evaluated
        c = len(self.classnames)
        ranked = np.stack([(after[test] + k) % c for k in range(5)], axis=1)
        names = ("metrics.json", "train_predictions.parquet", "predictions.parquet")
        run = RunFiles(method, seed, *(str(folder / name) for name in names))
        index, _ = read_evaluated_images(self.images)
        write_run(
            index,
            self.classnames,
            ranked,
            (index["image_id"][:0], []),
            [],
            "made",
            run,
        )
        return run

    def write_captions(self):
        """Captions of the images, with one text that is no HTML; their path."""
        texts = [f"<b>a image</b> of dots & {i % 4}" for i in range(self.n_train)]
        path = self.folder / "captions" / "images.parquet"
        return write_captions(path, self.image_ids[: self.n_train], texts)

    def metrics(self, method):
        runs = (run for run in self.runs if run.method == method)
        return [json.loads(Path(run.metrics).read_text()) for run in runs]


KINDS = ["cup", "dog", "car"]
N_UNNAMED = 36


def discover(folder, **more):
    """Run the stages as their rules do."""
    inputs = (f"{name}.parquet" for name in ("unnamed_images", "names", "unnamed_features"))
    proposed = str(folder / FILE)
    outputs = ("classes.txt", "discovery.json")
    propose_classes(*(str(folder / name) for name in inputs), DiscoverSection(), proposed)
    discover_classes(proposed, *(str(folder / name) for name in outputs), **more)


def write_unnamed(folder, answers, spread=1.0):
    """Write images of three kinds, with these answers. Without a spread, all look alike."""
    rng = np.random.default_rng(0)
    kinds = np.arange(len(answers)) % len(KINDS)
    files = write_pictures(folder / "pictures", len(answers))
    n = len(files)
    write_index(folder / "unnamed_images.parquet", files, ["train"] * n, [None] * n, [])
    ids = [f"{number:03d}.png" for number in range(n)]
    write_captions(folder / "names.parquet", ids, answers)
    features = rng.normal(size=(len(KINDS), 8))[kinds] + 0.2 * rng.normal(size=(n, 8))
    features = 1 + spread * (features - 1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    columns = {
        "image_id": ids,
        "image_features": tables.list_column(features.astype(np.float32)),
    }
    metadata = EncoderMetadata("a/clip", 3)
    path = folder / "unnamed_features.parquet"
    tables.write(path, columns, tables.IMAGE_FEATURES, metadata)
