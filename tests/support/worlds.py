"""Images, class texts and votes of known classes, and their files as the stages write them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from support import records
from support.tiny import (
    write_captions,
    write_class_scores,
    write_index,
    write_pictures,
    write_pseudo_labels,
)

from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config.keys import UnknownSection
from latteclip.core import tables
from latteclip.core.answers import Answer, AnswerFile
from latteclip.core.files import write_record
from latteclip.labels.fusion_report import NAME
from latteclip.labels.score_unknown import score_unknown

SCALE = 30.0


@dataclass
class World:
    """N images of C classes, the classes' texts, and what each image shows."""

    classes: torch.Tensor  # [N]
    features: torch.Tensor  # [N, D]
    texts: torch.Tensor  # [C, D]

    @classmethod
    def of(cls, n=900, c=6, d=24, *, seed=0, noise=0.5, text_noise=0.2):
        """Features around a direction of each class and one of all; texts near those of classes."""
        draw = torch.Generator().manual_seed(seed)
        classes = torch.randint(c, (n,), generator=draw)
        centres = F.normalize(torch.randn(c, d, generator=draw), dim=1)
        texts = F.normalize(centres + text_noise * torch.randn(c, d, generator=draw), dim=1)
        noises = noise * torch.randn(n, d, generator=draw)
        return cls(classes, F.normalize(centres[classes] + noises + 0.5, dim=1), texts)

    def zero_shot(self):
        """Zero-shot scores [N, C], computed plainly."""
        return SCALE * self.features.double() @ self.texts.double().T


class ZeroShotFiles:
    """Files of a world of which every fourth image is a test image."""

    def __init__(self, folder, world):
        self.folder, self.world = folder, world
        n, c = len(world.classes), len(world.texts)
        self.names = [f"{number:03d}.png" for number in range(n)]
        self.splits = ["test" if number % 4 == 3 else "train" for number in range(n)]
        self.labels = world.classes.tolist()
        self.classnames = [f"class {number}" for number in range(c)]
        self.described = {"classnames": self.classnames, "model": "m", "logit_scale": SCALE}

    @property
    def training(self):
        return [number for number, split in enumerate(self.splits) if split != "test"]

    def path(self, name):
        return str(self.folder / name)

    def write_index(self):
        index = self.path("images.parquet")
        return write_index(index, self.names, self.splits, self.labels, self.classnames)

    def write(self):
        """The paths of the three files."""
        labels, features = [0] * len(self.names), self.world.features.numpy()
        path = self.path("pseudo_labels.parquet")
        write_pseudo_labels(path, self.names, labels, None, features)
        texts = self.path("class_embeddings.safetensors")
        save_classifier(texts, Classifier.of(self.world.texts), self.described)
        return self.write_index(), path, texts

    def write_answers(self, rows, *more, drawn=()):
        """Answers with the true classes of images, "none" where a class has no name; their path."""
        answers = list(more)
        for row in rows:
            label = int(self.world.classes[row])
            name = self.classnames[label] if label < len(self.classnames) else None
            phase = "check" if row in drawn else "teach"
            answers.append(
                Answer(self.names[row], "class" if name else "none", name, phase)
            )
        path = self.folder / "answers.json"
        path.unlink(missing_ok=True)
        entries = {one.image_id: one for one in answers}
        index, _ = tables.read_unlabelled(self.write_index(), training=True)
        AnswerFile(path, index, self.classnames).update(entries)
        return str(path)

    def written(self, *names):
        """The bytes of files."""
        return [(self.folder / name).read_bytes() for name in names]


CLASSNAMES = ["a/b", "A:b", "con", "<b>&amp;\"'", "=2+3", "plain"]


class Taken(ZeroShotFiles):
    """Labels of 120 images, of which 90 are for training; in the working directory."""

    def __init__(self, folder):
        super().__init__(folder, World.of(120))
        self.classnames = CLASSNAMES
        self.described["classnames"] = CLASSNAMES
        write_pictures(folder, len(self.names), size=(8, 8))
        self.ids = [self.names[row] for row in self.training]
        self.rng = np.random.default_rng(0)
        self.confidence = self.rng.uniform(0.3, 0.99, len(self.ids)).astype(np.float32)
        self.truth = self.world.classes[self.training].numpy().astype(np.int32)
        wrong = self.rng.random(len(self.ids)) < 0.4
        self.fused = np.where(wrong, (self.truth + 1) % len(CLASSNAMES), self.truth)
        self.write()

    def write(self):
        found = super().write()
        score_unknown(
            *found,
            UnknownSection(share=0.1),
            self.path("unknown.parquet"),
            self.path("detector"),
        )
        n = len(self.ids)
        columns = {
            "image_id": self.ids,
            "adapted_label": self.fused,
            "image_label": pa.nulls(n, pa.int32()),
            "caption_label": self.truth,
            "caption_confidence": [0.0 if row % 9 == 0 else 0.75 for row in range(n)],
            "lmm_label": pa.nulls(n, pa.int32()),
            "lmm_confidence": pa.nulls(n, pa.float32()),
            "fused_label": self.fused,
            "fused_confidence": self.confidence,
            "fused_topk_labels": self.fused[:, None].tolist(),
            "fused_topk_probabilities": self.confidence[:, None].tolist(),
            "labeller_labels": self.truth[:, None].tolist(),
        }
        metadata = tables.ClassesMetadata(self.classnames)
        table = self.path("fused_labels.parquet")
        tables.write(table, columns, tables.FUSED_LABELS, metadata)
        self.write_report()
        self.write_duplicates([])
        captions = [f'a "{row}",\nand more' for row in range(n)]
        write_captions(self.folder / "captions" / "images.parquet", self.ids, captions)
        return found

    def write_report(self, **fields):
        """The report on the fused labels."""
        report = records.fusion(classnames=self.classnames, **fields)
        write_record(self.folder / NAME, report)

    def write_scores(self, options, log_probabilities):
        """Class scores [n][k] of the training images, which are the only votes."""
        path = self.path("class_scores.parquet")
        write_class_scores(path, self.ids, options, log_probabilities)
        self.write_report(labellers=[records.scores(weight=0.0)])

    def answer(self, n):
        """A person answers about the first n images, of which one is of no class."""
        ids = self.ids[:n]
        named = [CLASSNAMES[label] for label in self.truth[: n - 1]] + [None]
        right = [*(self.fused == self.truth)[: n - 1].tolist(), False]
        checked = records.checked(ids, self.confidence[:n].tolist(), right)
        answers = dict(zip(ids, named, strict=True))
        self.write_report(answers=answers, **checked)
        return {
            name: Answer(name, "none" if classname is None else "class", classname)
            for name, classname in answers.items()
        }

    def write_duplicates(self, sets):
        """DUPLICATES by the numbers of training images in each set, and of a test image."""
        rows = sorted((i, number) for number, images in enumerate(sets) for i in images)
        columns = {
            "image_id": ["a test image", *(self.ids[i] for i, _ in rows)],
            "set": [0, *(number for _, number in rows)],
        }
        tables.write(self.path("duplicates.parquet"), columns, tables.DUPLICATES)
