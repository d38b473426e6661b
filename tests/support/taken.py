"""A dataset that was labelled, with the files that `latteclip labels export` reads."""

import numpy as np
import pyarrow as pa
from support import records
from support.tiny import write_captions, write_pictures
from support.worlds import World
from support.zero_shot_files import ZeroShotFiles

from latteclip.config.keys import UnknownSection
from latteclip.core import tables
from latteclip.labels.answers import Answer
from latteclip.labels.fusion_report import NAME, PersonAnswers, write_fusion_report
from latteclip.labels.score_unknown import score_unknown

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

    def rename(self, classnames):
        """Give the classes other names, in all files."""
        self.classnames = self.described["classnames"] = classnames
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
            "labeller_labels": self.truth[:, None].tolist(),
        }
        tables.write(self.path("fused_labels.parquet"), columns, tables.FUSED_LABELS)
        self.write_report()
        self.write_duplicates([])
        captions = [f'a "{row}",\nand more' for row in range(n)]
        write_captions(self.folder / "captions" / "images.parquet", self.ids, captions)
        return found

    def write_report(self, **fields):
        """The report on the fused labels."""
        report = records.fusion(classnames=self.classnames, **fields)
        write_fusion_report(self.folder / NAME, report)

    def write_scores(self, options, log_probabilities):
        """Class scores [n][k] of the training images, which are the only votes."""
        columns = {
            "image_id": self.ids,
            "options": options,
            "log_probabilities": log_probabilities,
            **{name: pa.nulls(len(self.ids)) for name in ("none", "error", "digest")},
        }
        tables.write(self.path("class_scores.parquet"), columns, tables.CLASS_SCORES)
        self.write_report(labellers=[records.scores(weight=0.0)], votes="class scores")

    def answer(self, n):
        """A person answers about the first n images, of which one is of no class."""
        ids = self.ids[:n]
        named = [CLASSNAMES[label] for label in self.truth[: n - 1]] + [None]
        right = [*(self.fused == self.truth)[: n - 1].tolist(), False]
        checked = records.checked(ids, self.confidence[:n].tolist(), right)
        answers = PersonAnswers(dict(zip(ids, named, strict=True)), checked)
        self.write_report(answers=answers)
        return {
            name: Answer(name, "none" if classname is None else "class", classname)
            for name, classname in answers.images.items()
        }

    def write_duplicates(self, sets):
        """DUPLICATES by the numbers of training images in each set, and of a test image."""
        rows = sorted((i, number) for number, images in enumerate(sets) for i in images)
        columns = {
            "image_id": ["a test image", *(self.ids[i] for i, _ in rows)],
            "set": [0, *(number for _, number in rows)],
        }
        tables.write(self.path("duplicates.parquet"), columns, tables.DUPLICATES)
