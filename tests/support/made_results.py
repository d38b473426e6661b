"""Results of a run, as the stages write them, made from random numbers."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from support.tiny import write_pictures

from latteclip.core import tables
from latteclip.evaluate import metrics
from latteclip.report.runs import RunFiles

HOSTILE = "<script>alert('class')</script>"
HOSTILE_FILE = '"><img src=x onerror=alert(1)>.png'
CLASSNAMES = [HOSTILE, 'f-16a/b & "co"', "c{{ 7 * 7 }}", "dots", "lines", "waves", "rings"]


@dataclass
class Results:
    """Results of several methods on one dataset; its attributes are what a page is made of."""

    folder: Path
    classnames: list[str] = field(default_factory=lambda: list(CLASSNAMES))
    n_train: int = 31
    n_test: int = 53
    labelled: bool = True
    methods: tuple[str, ...] = ("zero_shot", "flyp", "latteclip")
    seeds: int = 2
    dataset: str = "made"
    captioner: dict = field(default_factory=lambda: {"model": "<i>llava</i>", "engine": "vllm"})

    def __post_init__(self):
        self.rng = np.random.default_rng(0)
        n, c = self.n_train + self.n_test, len(self.classnames)
        pictures = write_pictures(self.folder / "pictures", 9)
        hostile = Path(pictures[0]).rename(self.folder / "pictures" / HOSTILE_FILE.replace("/", ""))
        pictures[0] = str(hostile)
        self.splits = ["train"] * self.n_train + ["test"] * self.n_test
        self.image_ids = [f"{i}/{HOSTILE_FILE}" for i in range(n)]
        self.paths = [pictures[i % 9] for i in range(n)]
        self.labels = np.resize(np.arange(c), n)
        self.before = self.predictions(0.4)  # [N]
        self.images = str(self.folder / "images.parquet")
        self.pseudo_labels = str(self.folder / "pseudo_labels.parquet")
        self.write_index()
        self.write_pseudo_labels()
        self.runs = [
            self.write_run(method, seed)
            for method in self.methods
            for seed in range(1 if method == "zero_shot" else self.seeds)
        ]

    def predictions(self, accuracy):
        """Of all N images: right with a probability, else any class."""
        right = self.rng.random(len(self.labels)) < accuracy
        other = self.rng.integers(0, len(self.classnames), len(self.labels))
        return np.where(right, self.labels, other)

    def write_index(self, metadata=None):
        known = self.labels.tolist() if self.labelled else [None] * len(self.labels)
        tables.write(
            self.images,
            {
                "image_id": self.image_ids,
                "path": self.paths,
                "split": self.splits,
                "label": pa.array(known, pa.int32()),
                "classname": [None if i is None else self.classnames[i] for i in known],
                "width": [70] * len(known),
                "height": [64] * len(known),
            },
            tables.IMAGES,
            {"classnames": self.classnames} | (metadata or {}),
        )

    def write_pseudo_labels(self):
        n = len(self.labels)
        tables.write(
            self.pseudo_labels,
            {
                "image_id": self.image_ids,
                "split": self.splits,
                "pseudo_label": self.before.astype(np.int32),
                "confidence": self.rng.random(n, dtype=np.float32),
                "topk_labels": [[int(label)] * 5 for label in self.before],
                "topk_scores": [[0.5] * 5] * n,
                "image_features": [[1.0]] * n,
            },
            tables.PSEUDO_LABELS,
        )

    def write_run(self, method, seed):
        folder = self.folder / method / f"seed{seed}"
        folder.mkdir(parents=True)
        after = self.before if method == "zero_shot" else self.predictions(0.7)
        test = slice(self.n_train if self.n_test else 0, None)  # what is evaluated
        c = len(self.classnames)
        ranked = np.stack([(after[test] + k) % c for k in range(5)], axis=1)
        scores = np.sort(self.rng.random(ranked.shape))[:, ::-1]
        run = RunFiles(
            method,
            seed,
            str(folder / "metrics.json"),
            predictions=str(folder / "predictions.parquet"),
            history=None if method == "zero_shot" else str(folder / "history.parquet"),
        )
        index, _ = metrics.read_evaluated_images(self.images, self.dataset)
        metrics.write(
            index,
            self.classnames,
            ranked,
            scores.astype(np.float32),
            ["ours"] if method.endswith("_fused") else [],
            *((self.dataset, method, seed), run.predictions, run.metrics),
        )
        if run.history:
            self.write_history(run.history, is_latteclip=method.startswith("latteclip"))
        return run

    def write_history(self, path, *, is_latteclip, steps=300, epochs=3):
        columns = {"step": np.arange(steps, dtype=np.int32)}
        columns["epoch"] = (columns["step"] // (steps // epochs)).astype(np.int32)
        for name in tables.HISTORY.names[2:]:
            own = is_latteclip or name in ("loss", "agreement", "class_balance")
            values = self.rng.random(steps, dtype=np.float32)
            columns[name] = values if own else pa.nulls(steps, pa.float32())
        tuned = {"lr": 3e-5, "batch_size": 64, "epochs": epochs}
        metadata = {"settings": {"finetune": tuned}, "found": ["lr"], "averaged": 3}
        tables.write(path, columns, tables.HISTORY, metadata)

    def write_captions(self, kind, texts=None):
        """Captions of a kind, by default with one text that is no HTML; their path."""
        n = self.n_train
        texts = texts or [f"<b>a {kind}</b> of dots & {i % 4}" for i in range(n)]
        members = [[self.image_ids[i]] for i in range(n)]
        if kind == "group":
            for i, label in enumerate(self.before[:n]):
                own = np.flatnonzero(self.before[:n] == label)
                members[i] = [self.image_ids[j] for j in np.resize(own, 4)]
        path = self.folder / "captions" / f"{kind}s.parquet"
        tables.write(
            path,
            {
                "id": self.image_ids[:n] if kind == "image" else [str(i) for i in range(n)],
                "members": members,
                "pseudo_label": [None] * n if kind == "image" else self.before[:n].astype(np.int32),
                "prompt": ["?"] * n,
                "caption": texts,
                "finish_reason": ["stop"] * (n - 1) + ["length"],
                "n_tokens": pa.array([7] * (n - 1) + [None], pa.int32()),  # some servers do not say
                "attempts": pa.array([1] * n, pa.int8()),
                "error": pa.nulls(n, pa.string()),
                "digest": pa.nulls(n, pa.string()),
            },
            tables.CAPTIONS,
            {
                "captioner": self.captioner,
                "engine": "vllm 1",
                **({"groups": {"seed": 0, "canvas": 128, "gap": 4}} if kind == "group" else {}),
            },
        )
        return str(path)

    def metrics(self, method):
        """The metrics of every seed of a method."""
        return [
            json.loads(Path(run.metrics).read_text()) for run in self.runs if run.method == method
        ]
