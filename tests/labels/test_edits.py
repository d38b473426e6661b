"""Answers after random changes of the images and classes."""

from itertools import takewhile

import numpy as np
import pyarrow as pa
import pytest

from latteclip.audit import sampling
from latteclip.audit.rename_class import rename_class
from latteclip.audit.sampling import PlanMetadata
from latteclip.audit.score import answered_prefix
from latteclip.core import tables
from latteclip.data.index_images import checksum as checksum_of
from latteclip.labels.answers import (
    CLASS,
    NONE,
    UNSURE,
    Answer,
    teaching_schema,
)

SEQUENCES, EDITS, CHECK_EVERY = 24, 40, 5
PICTURES, CLASSES = 30, 4


def checksum(text):
    return checksum_of(text.encode())


class Dataset:
    """Photographs by name with a text as content, classes, and a person who answers.

    A class is a number here, and has a name. What was answered is noted by content and number.
    """

    def __init__(self, folder, seed):
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.made = 0
        self.photographs = {
            self.new("photograph"): self.new("text") for _ in range(PICTURES)
        }
        self.names = {}  # of all classes that ever were
        self.classes = [self.new_class() for _ in range(CLASSES)]
        self.deleted, self.removed = [], []
        self.taught, self.audited = (
            {},
            {},
        )  # by content: kind, class, classes that were offered
        index = self.index()
        n = len(self.photographs)
        columns = {"stratum": self.rng.integers(0, 3, n), "turn": self.rng.permutation(n)}
        columns |= {name: index[name] for name in ("image_id", "checksum")}
        self.plan = folder / "audit" / "train" / "plan.parquet"
        tables.write(self.plan, columns, tables.PLAN, PlanMetadata("train", 0))
        texts = list(self.photographs.values())
        self.planned = [texts[row] for row in np.argsort(columns["turn"])]
        self.strata = dict(zip(texts, columns["stratum"].tolist(), strict=True))

    def new(self, kind):
        self.made += 1
        return f"{kind} {self.made}"

    def new_class(self):
        number = len(self.names)
        self.names[number] = self.new("class")
        return number

    @property
    def classnames(self):
        return [self.names[number] for number in self.classes]

    def index(self):
        checksums = [*map(checksum, self.photographs.values())]
        return pa.table(
            {
                "image_id": pa.chunked_array([list(self.photographs)], pa.string()),
                "split": ["train"] * len(self.photographs),
                "checksum": pa.chunked_array([checksums], pa.binary(16)),
            }
        )

    def pick(self, values):
        return list(values)[self.rng.integers(len(values))]

    # --- changes

    def rename(self):
        old = self.pick(self.photographs)
        name = f"{self.pick(['', 'a/', 'b/'])}{self.new('photograph')}"
        self.photographs = {name if n == old else n: t for n, t in self.photographs.items()}

    def exchange(self):
        one, other = self.pick(self.photographs), self.pick(self.photographs)
        texts = self.photographs[one], self.photographs[other]
        self.photographs[other], self.photographs[one] = texts

    def delete(self):
        if len(self.photographs) > 5:
            self.deleted.append(self.photographs.pop(self.pick(self.photographs)))

    def restore(self):
        if self.deleted:
            text = self.deleted.pop(self.rng.integers(len(self.deleted)))
            self.photographs[self.new("photograph")] = text

    def overwrite(self):
        name = self.pick(self.photographs)
        self.deleted.append(self.photographs[name])
        self.photographs[name] = self.new("text")

    def add(self):
        self.photographs[self.new("photograph")] = self.new("text")

    def sort_otherwise(self):
        names = list(self.photographs)
        order = self.rng.permutation(len(names)).tolist()
        self.photographs = {names[row]: self.photographs[names[row]] for row in order}

    def reorder_classes(self):
        self.classes = self.rng.permutation(self.classes).tolist()

    def rename_class(self):
        number = self.pick(self.classes)
        old, self.names[number] = self.names[number], self.new("class")
        if any(
            f'"{old}"' in path.read_text() for path in self.folder.rglob("answers.json")
        ):
            rename_class(str(self.folder), old, self.names[number])

    def remove_class(self):
        if len(self.classes) > 2:
            self.removed.append(self.classes.pop(self.rng.integers(len(self.classes))))

    def restore_class(self):
        if self.removed:
            self.classes.append(self.removed.pop())

    def add_class(self):
        self.classes.insert(self.rng.integers(len(self.classes) + 1), self.new_class())

    # --- answers

    def schemas(self):
        plan = sampling.read_plan(self.plan, self.index(), self.classnames)
        teaching = teaching_schema("made", self.classnames, self.index())
        answers = self.folder / "answers.json", self.plan.with_name("answers.json")
        return (teaching, answers[0]), (plan.schema("made"), answers[1]), plan

    def save(self, schema, path, image, noted):
        kind = self.pick([CLASS] * 6 + [NONE, UNSURE])
        number = self.pick(self.classes) if kind == CLASS else None
        answer = Answer(image, kind, None if number is None else self.names[number])
        schema.update(path, {answer.key: answer})
        noted[self.photographs[image]] = kind, number, frozenset(self.classes)

    def teach(self):
        (schema, path), *_ = self.schemas()
        if images := self.photographs.keys() - schema.read(path).answers.keys():
            self.save(schema, path, self.pick(sorted(images)), self.taught)

    def audit(self):
        _, (schema, path), plan = self.schemas()
        saved = schema.read(path)
        names = (plan.image_ids[row] for row in plan.order)
        if image := next((name for name in names if name not in saved.answers), None):
            self.save(schema, path, image, self.audited)

    def undo(self):
        (schema, path), *_ = self.schemas()
        saved = schema.read(path)
        if saved.answers:
            key = self.pick(saved.answers)
            schema.update(path, {}, [key])
            del self.taught[self.photographs[key]]

    # --- what is expected

    def means(self, noted, text):
        """What an answer about a photograph says of the classes of now; None: nothing."""
        if text not in noted:
            return None
        kind, number, offered = noted[text]
        if kind == CLASS:
            return self.names[number] if number in self.classes else None
        return kind if kind == UNSURE or offered.issuperset(self.classes) else None

    def check(self):
        (teaching, path), (auditing, audit_path), plan = self.schemas()
        for schema, file, noted in (
            (teaching, path, self.taught),
            (auditing, audit_path, self.audited),
        ):
            said = {
                k: one.classname or one.kind for k, one in schema.read(file).answers.items()
            }
            wanted = {
                name: self.means(noted, text) for name, text in self.photographs.items()
            }
            assert said == {name: word for name, word in wanted.items() if word}
        texts = [text for text in self.planned if text in self.photographs.values()]
        prefix = list(takewhile(self.audited.__contains__, texts))
        found = answered_prefix(plan, auditing.read(audit_path).asked)
        assert [self.photographs[name] for name in found] == prefix


OF_IMAGES = (
    "rename",
    "exchange",
    "delete",
    "restore",
    "overwrite",
    "add",
    "sort_otherwise",
)
OF_CLASSES = (
    "reorder_classes",
    "rename_class",
    "remove_class",
    "restore_class",
    "add_class",
)
OF_ANSWERS = (*["teach"] * 4, *["audit"] * 8, "undo")


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_no_answer_is_lost_or_misread(tmp_path, seed):
    dataset = Dataset(tmp_path, seed)
    for number in range(1, EDITS + 1):
        getattr(dataset, dataset.pick(OF_IMAGES + OF_CLASSES + OF_ANSWERS))()
        if number % CHECK_EVERY == 0:
            dataset.check()
