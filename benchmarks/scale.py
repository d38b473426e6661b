"""Time the stages around the models for many images: what grows with a dataset, and how.

    python benchmarks/scale.py N [N ...] [--classes 1000] [--folder DIR] [--lines FILE]
        [--only STEP [STEP ...]]

N tiny JPEGs (links to a few distinct ones) in class folders are indexed. Hashes, features, captions
and answers are random, so that no model runs, but they go through the files and functions of the
stages. Each step runs in a process of its own. Its time is that of the work alone, without imports.
Its memory is the largest resident size of its largest process, imports included.

docs/scaling.md has the figures. With --lines, they are also added to a file as lines of JSON. With
--only, no image is made: an index is written, and of the steps only those named run, which must
need no more than that and each other.
"""

import argparse
import dataclasses
import hashlib
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parents[1]
DISTINCT = 64  # JPEGs; a file system allows at most 65,000 links to a file
WIDTH = 512  # of features, as ViT-B/32 gives them
SHARDS = 64
TRAINED = 200  # steps
BATCH = 128  # images of a step
WORDS = 55  # of a caption
OPTIONS = 10  # of class scores
PROSE = """a the of with on in and small large bright dark red green blue old round long striped
smooth photo object table grass water sky wall shadow pattern detail surface edge corner"""
ADJECTIVES = [
    "alpine",
    "common",
    "crested",
    "dusky",
    "giant",
    "golden",
    "grey",
    "hooded",
    "lesser",
]
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

    def file(self, name: str) -> str:
        """Return the path of a file below results/scale of the workflow's copy."""
        return str(self.checkout / "results" / "scale" / name)

    def shards(self) -> list[str]:
        return [
            self.file(f"captions/shards/images-{i + 1}-of-{SHARDS}.parquet")
            for i in range(SHARDS)
        ]

    @property
    def classnames(self) -> list[str]:
        """Names of two words, as most names of species are."""
        return [f"{ADJECTIVES[i % 9]} kind{i // 9}" for i in range(self.n_classes)]


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
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        folders = [place.images / name.replace(" ", "_") for name in place.classnames]
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
        "--dry-run",
        "--quiet",
        "all",
        "--cores=2",
    ]
    given = ["--config", "dataset=scale", f"image_dir={place.images}", "seeds=3"]
    given.append("split={'classes': 'folders'}")
    shards = f"captions={{'shards': {SHARDS}}}"
    environment = {**os.environ, "PYTHONPATH": str(place.checkout)}

    def work() -> None:
        subprocess.run(
            [*command, *given, shards],
            cwd=place.checkout,
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    return work


def index_images(place: Place) -> Work:
    """Index the images by two processes."""
    from latteclip.config.sections.split import SplitSection
    from latteclip.data import index_images as splits

    settings = SplitSection(kind="folders")
    names = ("images.parquet", "corrupt.csv")
    outputs = [place.file(name) for name in names]
    return lambda: splits.index_images(str(place.images), settings, *outputs, threads=2)


def make_index(place: Place) -> Work:
    """Write an index of images that are not there, 70 % of them for training."""
    from latteclip.core import tables
    from latteclip.core.metadata import IndexMetadata

    def work() -> None:
        classes = sorted(place.classnames)
        labels = [number * place.n_classes // place.n for number in range(place.n)]
        names = [
            f"{classes[label]}/{number:08d}.jpg" for number, label in enumerate(labels)
        ]
        Path(place.file("images.parquet")).parent.mkdir(parents=True)
        columns = {
            "image_id": names,
            "path": names,
            "split": ["train" if number % 10 < 7 else "test" for number in range(place.n)],
            "label": labels,
            "classname": [classes[label] for label in labels],
            "checksum": [number.to_bytes(16) for number in range(place.n)],
            "width": [16] * place.n,
            "height": [16] * place.n,
            "hashes": random_hashes(place.n),
        }
        tables.write(
            place.file("images.parquet"), columns, tables.IMAGES, IndexMetadata(classes)
        )

    return work


def add_images(place: Place) -> Work:
    """Add one image for each hundred."""
    folders = sorted(place.images.iterdir())

    def work() -> None:
        for number in range(place.n // 100):
            path = folders[number % len(folders)] / f"new_{number:08d}.jpg"
            os.link(place.folder / f"{number % DISTINCT}.jpg", path)

    return work


def random_hashes(n: int) -> list[bytes]:
    """Return random perceptual hashes of n images. Every twentieth equals that before it."""
    import numpy as np

    values = np.random.default_rng(2).integers(0, 256, (n, 96), dtype=np.uint8)
    values[19::20] = values[18::20][: len(values[19::20])]
    return list(map(bytes, values))


def find_duplicates(place: Place) -> Work:
    """Find near-duplicates among all images."""
    from latteclip.data import find_duplicates as stage

    names = ("images.parquet", "duplicates.parquet")
    files = [place.file(name) for name in names]
    return lambda: stage.find_duplicates(*files)


def write_pseudo_labels(place: Place) -> Work:
    """Write pseudo-labels by random features, which are made before."""
    import torch

    from latteclip.clip.classifier import Classifier, save_classifier
    from latteclip.core import tables
    from latteclip.core.metadata import ClassesMetadata
    from latteclip.labels import pseudo_label_images

    table, classnames = tables.read_unlabelled(place.file("images.parquet"), training=False)
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(len(classnames), WIDTH), dim=1)
    shown = torch.randint(len(classnames), (len(table),), generator=draw)
    features = _features(embeddings * WIDTH**0.5, shown, 3.0, draw)
    described: dict[str, Any] = {
        "classnames": classnames,
        "model": "random",
        "pretrained": None,
    }
    described |= {"template": "{}", "logit_scale": 100.0}
    save_classifier(place.file("classes.safetensors"), Classifier.of(embeddings), described)
    output = place.file("pseudo_labels.parquet")
    metadata = ClassesMetadata(classnames)
    return lambda: pseudo_label_images.write_pseudo_labels(
        output, table, features, embeddings, 100.0, 5, metadata
    )


def _features(centres: Any, shown: Any, noise: float, draw: Any) -> Any:
    """Return a FeatureMemmap [N, D], L2-normalised, around the centres [C, D] of classes [N]."""
    import torch

    from latteclip.clip.classifier import FeatureMemmap

    made = FeatureMemmap(len(shown), WIDTH)
    for start in range(0, len(shown), 2**14):
        part = centres[shown[start : start + 2**14]]
        part = part + noise * torch.randn(part.shape, generator=draw)
        made[start : start + len(part)] = torch.nn.functional.normalize(part, dim=1)
    return made


def read_features(place: Place) -> Work:
    """Read the features of the training images, as label fusion does."""
    from latteclip.core import tables
    from latteclip.labels import features as cached_features

    def work() -> None:
        table, _ = tables.read_unlabelled(place.file("images.parquet"), training=True)
        cached_features.read_features(
            place.file("pseudo_labels.parquet"), table["image_id"]
        )

    return work


def evaluate_classifier(place: Place) -> Work:
    """Evaluate the class texts on the test split."""
    from latteclip.config.sections.inference import InferenceSection
    from latteclip.evaluate import evaluate_classifier as stage

    return lambda: stage.evaluate_classifier(
        place.file("images.parquet"),
        place.file("pseudo_labels.parquet"),
        place.file("classes.safetensors"),
        None,
        stage.ClassifierSettings(inference=InferenceSection()),
        "scale",
        "zero_shot",
        0,
        place.file("predictions.parquet"),
        place.file("metrics.json"),
        place.file("train_predictions.parquet"),
    )


def _group_questions(place: Place, shard: str) -> Callable[[], Any]:
    from latteclip.captions.groups import questions_about
    from latteclip.captions.pictures import Layout
    from latteclip.config.sections.groups import GroupsSection

    index = place.file("images.parquet")
    labels = place.file("pseudo_labels.parquet")
    drawn = GroupsSection()
    return lambda: questions_about(index, labels, "Describe them.", Layout(), shard, drawn)


def plan_images(place: Place) -> Work:
    """Plan what a job of 64 asks about images."""
    from latteclip.captions.groups import questions_about
    from latteclip.captions.pictures import Layout

    index = place.file("images.parquet")
    labels = place.file("pseudo_labels.parquet")
    part = f"1/{SHARDS}"
    return lambda: _walk(questions_about(index, labels, "Describe the {}.", Layout(), part))


def plan_groups(place: Place) -> Work:
    """Plan what a job of 64 asks about groups."""
    questions = _group_questions(place, f"1/{SHARDS}")
    return lambda: _walk(questions())


def plan_all_groups(place: Place) -> Work:
    """Plan what one job asks about all groups."""
    questions = _group_questions(place, "1/1")
    return lambda: _walk(questions())


def _walk(questions: Any) -> None:
    """Make every request, as worker processes are given it."""
    from latteclip.captions.requests import Request

    for row in range(len(questions)):
        Request(row, (), questions.prompts(row), None, questions.paths_of(row))


def make_captions(place: Place) -> Work:
    """Write captions of images in shards and of groups in one table."""
    from latteclip.captions.groups import shard_of
    from latteclip.captions.metadata import AnswerSource, CaptionsMetadata
    from latteclip.captions.pictures import Layout
    from latteclip.config.sections.groups import GroupsSection
    from latteclip.core import tables

    texts = _captions(place)
    metadata = CaptionsMetadata(
        source=AnswerSource("none", None, "bfloat16", None, 64),
        engine="none",
        date="2026-01-01",
        prompt="Describe it.",
        retry_prompt="",
        layout=Layout(max_side=1344),
    )

    def write(
        path: str, rows: list[tuple[str, list[str], int | None]], groups: Any
    ) -> None:
        with tables.writing(
            path, tables.CAPTIONS, dataclasses.replace(metadata, groups=groups)
        ) as add:
            for start in range(0, len(rows), tables.CAPTION_ROWS):
                part = rows[start : start + tables.CAPTION_ROWS]
                add(
                    {
                        "id": [row[0] for row in part],
                        "members": [row[1] for row in part],
                        "pseudo_label": [row[2] for row in part],
                        "prompt": ["Describe it."] * len(part),
                        "caption": list(itertools.islice(texts, len(part))),
                        "finish_reason": ["stop"] * len(part),
                        "n_tokens": [20] * len(part),
                        "attempts": [1] * len(part),
                        "error": [None] * len(part),
                        "digest": [f"{hash(row[0]) % 2**64:032x}" for row in part],
                    }
                )

    def work() -> None:
        index, _ = tables.read_unlabelled(place.file("images.parquet"), training=True)
        ids = index["image_id"].to_pylist()
        shards: list[list[Any]] = [[] for _ in range(SHARDS)]
        for name in ids:
            shards[shard_of(name, SHARDS) - 1].append((name, [name], None))
        for path, rows in zip(place.shards(), shards, strict=True):
            write(path, rows, None)
        questions = _group_questions(place, "1/1")()
        every = zip(questions.ids, questions.members, questions.labels, strict=True)
        groups = [
            (name, [ids[i] for i in members], label) for name, members, label in every
        ]
        write(place.file("captions/groups.parquet"), groups, GroupsSection())

    return work


def _captions(place: Place) -> Iterator[str]:
    """Yield texts without end, of which a third name a class."""
    import numpy as np

    rng = np.random.default_rng(1)
    vocabulary = PROSE.split()
    names = place.classnames
    while True:
        drawn = rng.integers(0, len(vocabulary), (4096, WORDS))
        classes = rng.integers(0, 3 * len(names), 4096)
        for words, number in zip(drawn, classes, strict=True):
            text = " ".join(vocabulary[i] for i in words)
            yield f"{text} {names[number]}." if number < len(names) else f"{text}."


def _digest(number: int) -> str:
    """Return the digest of an invented request: evenly spread, as real ones are."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def cache_answers(place: Place) -> Work:
    """Cache N answers in one file, as one run leaves them."""
    from latteclip.captions.answer_cache import AnswerCache
    from latteclip.captions.requests import Response

    texts = _captions(place)

    def work() -> None:
        with AnswerCache(place.folder / "answers") as cache:
            for number, text in zip(range(place.n), texts, strict=False):
                cache.add(
                    _digest(number), Response(text, "stop", 20, n_read=600), "vllm 0.19.1"
                )

    return work


def find_answers(place: Place) -> Work:
    """Find the cached answers of a job of 64 in that file."""
    from latteclip.captions.answer_cache import AnswerCache

    def work() -> None:
        with AnswerCache(place.folder / "answers", f"1-of-{SHARDS}") as cache:
            cache.digests()
            for number in range(0, place.n, SHARDS):
                _done(cache.get(_digest(number)) is not None)

    return work


def gather_captions(place: Place) -> Work:
    """Gather the captions of 64 shards in one table."""
    from latteclip.captions import caption as stage

    output = place.file("captions/images.parquet")
    return lambda: stage.gather_captions(
        place.file("images.parquet"), place.shards(), output
    )


def summarize_captions(place: Place) -> Work:
    """Summarise the captions of images and groups."""
    from latteclip.captions import summarize_captions as caption_summary

    paths = [place.file(f"captions/{kind}.parquet") for kind in ("images", "groups")]
    index = place.file("images.parquet")
    output = place.file("captions/summary.json")
    return lambda: caption_summary.summarize_captions(paths, index, output)


def fuse_labels(place: Place) -> Work:
    """Label training images by captions and what is known of the images."""
    features, texts, named = _voted(place)
    votes = {"captions": named(0.4)}
    return lambda: _fit(features, texts, votes)


def fuse_labels_of_three(place: Place) -> Work:
    """Label them by captions, class scores and labels of a file."""
    import numpy as np

    from latteclip.labels.label_model import TopK

    features, texts, named = _voted(place)
    rng = np.random.default_rng(1)
    options = rng.integers(place.n_classes, size=(len(features), OPTIONS))
    options[:, 0] = named(0.3)
    shares = -np.sort(-rng.dirichlet(np.ones(OPTIONS), len(features)))
    votes = {"captions": named(0.4), "scores": TopK(options, shares), "file": named(0.2)}
    return lambda: _fit(features, texts, votes)


def _fit(features: Any, texts: Any, votes: Any) -> None:
    from latteclip.labels.label_model import LabelModel

    model = LabelModel().fit(features, votes, texts)
    _done(model.labellers_["captions"].weight > 0)


def _voted(place: Place) -> tuple[Any, Any, Callable[[float], Any]]:
    """Return features around a direction of each class, and labels of which a share is wrong."""
    import numpy as np
    import torch

    from latteclip.core import tables

    index, _ = tables.read_unlabelled(place.file("images.parquet"), training=True)
    n = len(index)
    draw = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    centres = torch.randn(place.n_classes, WIDTH, generator=draw)
    classes = torch.randint(place.n_classes, (n,), generator=draw)
    texts = _features(centres, torch.arange(place.n_classes), 0.5, draw)[:].numpy()
    features = _features(centres, classes, 3.0, draw)[:].numpy()

    def named(share: float) -> Any:
        wrong = rng.random(n) < share
        return np.where(wrong, rng.integers(place.n_classes, size=n), classes.numpy())

    return features, texts, named


def _done(found: bool) -> None:
    """End a work that would have been shorter if nothing had been found."""
    if not found:
        raise RuntimeError("Votes did not count, or answers were not found.")


def report_dataset(place: Place) -> Work:
    """Write the page of the dataset with the zero-shot row."""
    from latteclip.config.sections.table import TableSection
    from latteclip.report import report_dataset as dataset_report
    from latteclip.report.runs import RunTables

    runs = [RunTables("zero_shot", 0, place.file("metrics.json"))]
    settings = dataset_report.ReportSettings(
        dataset="scale",
        table=TableSection(),
        main="zero_shot",
        suffix="",
        overview="index.html",
        config={},
    )
    files = dataset_report.PageFiles(
        images=place.file("images.parquet"),
        pseudo_labels=place.file("pseudo_labels.parquet"),
        image_captions=place.file("captions/images.parquet"),
        group_captions=place.file("captions/groups.parquet"),
    )
    output = place.file("report.html")
    return lambda: dataset_report.report_dataset(files, runs, settings, output)


def _training_data(place: Place) -> tuple[Any, Any]:
    """Return what fine-tuning reads, and its texts."""
    import open_clip

    from latteclip.train import data as training_data
    from latteclip.train.objectives import base as texts

    class Clip:
        tokenizer = staticmethod(open_clip.get_tokenizer("ViT-B-32"))

    bank = texts.TokenizedTexts(cast(Any, Clip()))
    files = training_data.TrainingFiles(
        images=place.file("images.parquet"),
        pseudo_labels=place.file("pseudo_labels.parquet"),
        image_captions=place.file("captions/images.parquet"),
        group_captions=place.file("captions/groups.parquet"),
    )
    return training_data.read(files, "a photo of a {}.", "zero_shot", bank), bank


def read_training_data(place: Place) -> Work:
    """Read what fine-tuning reads before texts and images, and the batches of an epoch."""
    from latteclip.train import data as training_data
    from latteclip.train.settings import steps_per_epoch

    def work() -> None:
        data, _ = _training_data(place)
        steps = steps_per_epoch(data.n_scheduled, 512)
        for _ in training_data.schedule(len(data.paths), 512, steps, 0):
            pass

    return work


def tokenize_texts(place: Place) -> Work:
    """Tokenise all captions, as once per training. Reading them is not timed."""
    _, bank = _training_data(place)
    return lambda: print(f"{len(bank.tokens)} texts", file=sys.stderr)


def finetune(place: Place) -> Work:
    """Train the demo's CLIP for TRAINED steps by the command, ended half-way and run again.

    The made captions and images, batches of 128. The model is not written.
    """
    section = {
        "epochs": 1000,  # more than are waited for
        **{"warmup_steps": 5, "batch_size": BATCH, "lr": 3e-4, "weight_decay": 0.2},
    }
    settings = {
        "clip": {
            "model": f"local-dir:{ROOT / 'latteclip' / 'demo' / 'models' / 'clip'}",
            "pretrained": None,
        },
        "class_texts": {"template": "a photo of a {}."},
        "method": {"objective": "latteclip", "finetune": section},
        "compute": {},
    }
    files = {
        "images": place.file("images.parquet"),
        "pseudo_labels": place.file("pseudo_labels.parquet"),
        "image_captions": place.file("captions/images.parquet"),
        "group_captions": place.file("captions/groups.parquet"),
    }
    outputs = ("model", "history", "checkpoint", "log")
    options = [f"--{name}={place.file(f'trained/{name}')}" for name in outputs]
    command = [
        sys.executable,
        "-m",
        "latteclip",
        "finetune",
        *options,
        "--seed=0",
        "--threads=1",
    ]
    command += [f"--files={json.dumps(files)}", f"--settings={json.dumps(settings)}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def work() -> None:
        log = place.file("trained/log")
        for _ in range(2):
            steps = _steps_told(log) + TRAINED // 2
            with subprocess.Popen(
                command, env=environment, stderr=subprocess.DEVNULL
            ) as run:
                while _steps_told(log) < steps:
                    if run.poll() is not None:
                        raise RuntimeError(f"finetune ended with status {run.returncode}.")
                    time.sleep(0.5)
                run.terminate()
            _done(run.returncode == 128 + signal.SIGTERM)

    return work


def _steps_told(log: str) -> int:
    """Return how many steps the progress in a log counts."""
    text = Path(log).read_text() if os.path.exists(log) else ""
    told = re.findall(r"(\d+)/\d+ \[", text)
    return int(told[-1]) if told else 0


def write_predictions(place: Place) -> Work:
    """Find N images and write invented predictions, as `predict` does beside the model."""
    from latteclip.deploy import predict

    def work() -> None:
        paths = predict.image_paths([str(place.images)], sys.stdin.buffer)
        names = place.classnames[:3]
        best = [0.9, 0.05, 0.01]
        predictions = (predict.Prediction(x, [0, 1, 2], names, best, best) for x in paths)
        predict.writer_of(place.file("predicted.parquet"))(predictions, len(names), [])

    return work


def export_labels(place: Place) -> Work:
    """Export labels as CSV from a table that is made before."""
    import numpy as np
    import torch

    from latteclip.clip.classifier import Classifier, save_classifier
    from latteclip.core import tables
    from latteclip.deploy import export_labels as stage
    from latteclip.labels.fusion_report import write_fusion_report

    table, names = tables.read_unlabelled(place.file("images.parquet"), training=True)
    n = len(table)
    folder = Path(place.file("."))
    columns = _nulls(tables.FUSED_LABELS, n)
    labels = np.arange(n) % len(names)
    columns |= {
        "image_id": table["image_id"],
        "adapted_label": labels,
        "fused_label": labels,
    }
    columns |= {"fused_confidence": np.full(n, 0.5, np.float32)}
    tables.write(folder / "fused_labels.parquet", columns, tables.FUSED_LABELS)
    write_fusion_report(folder / "fused_labels.json", _report(names))
    features = tables.read_pieces(
        folder / "pseudo_labels.parquet", tables.PSEUDO_LABELS, ["image_features"], 1
    )
    width = len(next(features)["image_features"][0])
    head = Classifier.of(torch.randn(len(names), width))
    (folder / "classifiers").mkdir(exist_ok=True)
    described = {"classnames": names}
    save_classifier(
        folder / "classifiers" / "image_prototypes.safetensors", head, described
    )
    return lambda: print(stage.export_labels(str(folder), "csv", place.file("labels.csv")))


def _teaching_session(place: Place) -> Any:
    """Return a session of `latteclip teach` on labels of class scores, 60 % of which are right."""
    import numpy as np
    import pyarrow as pa
    import torch

    from latteclip.audit.teach import TeachingSession
    from latteclip.core import tables
    from latteclip.labels.fusion_report import write_fusion_report

    folder = Path(place.file("."))
    table, names = tables.read_unlabelled(place.file("images.parquet"), training=False)
    draw = torch.Generator().manual_seed(0)  # as of the features of `write_pseudo_labels`
    shown = torch.randint(len(names), (len(table),), generator=draw).numpy()
    rng = np.random.default_rng(0)
    scored = np.where(
        rng.random(len(shown)) < 0.6, shown, rng.integers(0, len(names), len(shown))
    )
    options = (scored[:, None] + np.arange(5)) % len(names)
    logs = np.log(np.tile(np.array([0.6, 0.1, 0.1, 0.1, 0.1], np.float32), (len(shown), 1)))
    ends = pa.array(np.arange(0, options.size + 1, 5, dtype=np.int32))
    columns = _nulls(tables.CLASS_SCORES, len(table))
    columns |= {"image_id": table["image_id"].combine_chunks()}
    columns |= {
        "options": pa.ListArray.from_arrays(
            ends, pa.array(options.ravel().astype(np.int32))
        ),
        "log_probabilities": pa.ListArray.from_arrays(ends, pa.array(logs.ravel())),
    }
    tables.write(folder / "class_scores.parquet", columns, tables.CLASS_SCORES)
    columns = _nulls(tables.FUSED_LABELS, len(table))
    columns |= {"image_id": table["image_id"], "adapted_label": shown, "fused_label": shown}
    columns |= {"fused_confidence": rng.random(len(shown), np.float32)}
    tables.write(folder / "fused_labels.parquet", columns, tables.FUSED_LABELS)
    write_fusion_report(folder / "fused_labels.json", _report(names))
    shutil.copy(place.file("classes.safetensors"), folder / "class_embeddings.safetensors")
    return TeachingSession(folder, 100)


def _report(classnames: list[str]) -> Any:
    """Return a report of fused labels by class scores."""
    from latteclip.labels import fusion_report

    return fusion_report.FusionReport(
        classnames=classnames,
        written_names={},
        model="random",
        pretrained=None,
        labellers=[_labeller("scores", "decisions", "class_scores.parquet")],
        zero_shot=_labeller("zero_shot", "zero_shot", None),
        votes="class scores",
        voting=0,
        reason="",
        changed=0,
        image_encoders=[],
        answers=fusion_report.PersonAnswers(),
    )


def _labeller(name: str, kind: str, table: str | None) -> Any:
    """Return a labeller of the report."""
    from latteclip.labels import fusion_report

    return fusion_report.LabellerReport(
        name=name,
        kind=kind,
        table=table,
        answers=table,
        votes=0,
        weight=1.0,
        accuracy=None,
        by="votes",
        answers_needed=371,
    )


def _nulls(schema: Any, n: int) -> dict[str, Any]:
    """Return the columns of a table of n rows that are not filled."""
    import pyarrow as pa

    return {field.name: pa.nulls(n, field.type) for field in schema}


def teach(place: Place) -> Work:
    """Choose the next ten images of `latteclip teach`, after labels learned from ten answers."""
    from latteclip.labels.answers import CLASS, Answer

    session = _teaching_session(place)
    answers: dict[str, Answer] = {}

    while (
        len(answers) < 20
    ):  # before, the labels learned once, which loads what they learn with
        one = session.open_questions(answers)[0]
        answers[one.key] = Answer(one.image_id, CLASS, one.options[0], one.phase)
    return lambda: _done(bool(session.open_questions(answers)))


@dataclass(frozen=True)
class Step:
    """A function of this module, and how the table calls it. None: not in the table."""

    run: Callable[[Place], Work]
    title: str | None


STEPS = [
    Step(make_index, None),
    Step(make_images, None),
    Step(plan_jobs, "`snakemake -n`, nothing there"),
    Step(index_images, "index_images, two processes"),
    Step(index_images, "index_images again, nothing new"),
    Step(find_duplicates, "find_duplicates"),
    Step(write_pseudo_labels, "pseudo-labels: scores, table written"),
    Step(plan_jobs, "`snakemake -n`, index and pseudo-labels there"),
    Step(read_features, "features of the training images read"),
    Step(evaluate_classifier, "evaluation of the zero-shot row"),
    Step(plan_images, "captions of images: plan of a shard of 64"),
    Step(plan_groups, "captions of groups: plan of a shard of 64"),
    Step(plan_all_groups, "captions of groups: plan of all"),
    Step(make_captions, None),
    Step(cache_answers, "N answers cached"),
    Step(find_answers, "N cached answers: those of a shard of 64 found"),
    Step(gather_captions, "gather_captions of 64 shards"),
    Step(summarize_captions, "summarize_captions, images and groups"),
    Step(fuse_labels, "fuse_labels: votes fused"),
    Step(fuse_labels_of_three, "fuse_labels: votes of three labellers fused"),
    Step(teach, "latteclip teach: the next ten images"),
    Step(read_training_data, "fine-tuning: inputs read, one epoch's batches"),
    Step(tokenize_texts, "fine-tuning: captions tokenised"),
    Step(finetune, f"fine-tuning: {TRAINED} steps, stopped and resumed once"),
    Step(report_dataset, "report_dataset of two methods"),
    Step(write_predictions, "predict: images found, predictions written"),
    Step(export_labels, "latteclip labels export, CSV"),
    Step(add_images, None),
    Step(index_images, "index_images again, 1 % new"),
]


def chosen(only: Sequence[str]) -> list[int]:
    """Return the places in STEPS of some functions and `make_index`. None given: of all others."""
    names = {make_index.__name__, *only}
    return [n for n, step in enumerate(STEPS) if (step.run.__name__ in names) == bool(only)]


# --- processes -----------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


def peak_memory() -> float:
    """Return the MiB of the largest of these processes."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in whose) / 1024


def measure(step: Step, place: Place) -> None:
    """Take a step in this process, and print its figures as JSON."""
    work = step.run(place)
    before = cpu_seconds()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    cpu = cpu_seconds() - before
    found = {"seconds": seconds, "cpu": cpu, "memory": peak_memory()}
    figures = {name: round(value, 2) for name, value in found.items()}
    print(json.dumps({"images": place.n, "title": step.title, **figures}))


def run_step(number: int, place: Place) -> dict[str, Any]:
    """Return the figures of a step, from a process of its own."""
    arguments = [str(place.n), f"--classes={place.n_classes}", f"--folder={place.folder}"]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, f"--step={number}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run(place: Place, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Take the steps for a number of images, and yield their figures and the sizes of files."""
    print(f"\n{place.n} images, {place.n_classes} classes, features of {WIDTH}\n")
    print("| step | seconds | CPU seconds | MiB |\n|---|---:|---:|---:|", flush=True)
    for number in chosen(only):
        found = run_step(number, place)
        if (title := STEPS[number].title) is not None:
            yield found
            figures = f"{found['seconds']:.1f} | {found['cpu']:.1f} | {found['memory']:.0f}"
            print(f"| {title} | {figures} |", flush=True)
    print("\n| file | bytes per image |\n|---|---:|")
    results = place.checkout / "results" / "scale"
    sizes = {
        str(path.relative_to(results)): path.stat().st_size
        for pattern in ("*.parquet", ".decode_cache.sqlite", "*.csv")
        for path in sorted(results.rglob(pattern))
        if path.parent.name != "shards"
    }
    if answers := list((place.folder / "answers").glob("*")):
        sizes["cached answers"] = sum(path.stat().st_size for path in answers)
    for file, size in sizes.items():
        yield {"images": place.n, "file": file, "bytes": size}
        print(f"| {file} | {size / place.n:.0f} |")


def main() -> None:
    """Print a table for each number of images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=int, nargs="+", metavar="N")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument(
        "--folder", type=Path, help="where the files are put; default: a temporary"
    )
    parser.add_argument(
        "--lines", type=Path, help="where figures are added as lines of JSON"
    )
    names = sorted({step.run.__name__ for step in STEPS})
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", choices=names)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step is not None:
        logging.basicConfig(level=logging.ERROR)
        measure(STEPS[args.step], Place(args.folder, args.images[0], args.classes))
        return
    for n in args.images:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for figures in run(Place(Path(folder), n, args.classes), args.only):
                if args.lines:
                    with args.lines.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
