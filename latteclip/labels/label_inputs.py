"""Read what labels are made of: features, class texts, votes, answers and examples.

Examples are images of known classes that are not in the dataset. A person chose them to show what
a class looks like, so they count as answers do. They are rows after the N images, without votes.

Letters: N images, E examples, C classes, D embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.clip.classifier import load_classifier
from latteclip.core import tables
from latteclip.core.errors import DELETE_AND_RERUN, UserError
from latteclip.core.tables import EncoderMetadata, ExamplesMetadata
from latteclip.labels.answers import CHECK, CLASS, UNSURE, Answer, teaching_schema
from latteclip.labels.features import read_features
from latteclip.labels.label_model import SCALE, Answers, Floats, Ints, LabelModel, TopK
from latteclip.labels.vote_tables import read_votes

LIKELIHOOD = "likelihood"  # the kind whose scores contain how common an answer is


@dataclass(frozen=True)
class LabellerTable:
    """A labeller, and its votes."""

    name: str
    kind: str  # a kind of the key `labellers`
    table: str  # CLASS_SCORES
    # Begin of the names of its columns in FUSED_LABELS, if it has some.
    column: str | None = None


@dataclass(frozen=True)
class LabelInputs:
    """What the labels of N images are made of."""

    n: int
    n_classes: int
    features: list[Floats]  # [N + E, D] of CLIP, and of each image encoder beside it
    texts: Floats  # [C, D], scaled as LabelModel expects them
    votes: dict[str, TopK]  # [N, K] of each labeller
    examples: Ints  # [E] their classes
    described: dict[str, Any]  # CLIP
    encoders: list[str]  # the models beside CLIP

    @classmethod
    def read(
        cls,
        image_ids: pa.ChunkedArray,
        classnames: Sequence[str],
        pseudo_labels_path: str | Path,
        class_embeddings_path: str | Path,
        labellers: Sequence[LabellerTable],
        image_encoders_paths: Sequence[str | Path] = (),
        examples_path: str | Path | None = None,
    ) -> "LabelInputs":
        """Read the features of N images, and the votes of each labeller."""
        classes, described = load_classifier(class_embeddings_path, classnames=classnames)
        features = [_features(pseudo_labels_path, image_ids, tables.PSEUDO_LABELS)]
        features += [
            _features(one, image_ids, tables.IMAGE_FEATURES) for one in image_encoders_paths
        ]
        encoders = [
            tables.read_metadata(path, EncoderMetadata).model
            for path in image_encoders_paths
        ]
        votes = {
            one.name: read_votes(one.table, image_ids, without_bias=one.kind == LIKELIHOOD)
            for one in labellers
        }
        examples = np.zeros(0, np.int64)
        if examples_path is not None:
            models = [described["model"], *encoders]
            added, examples = read_examples(examples_path, classnames, models)
            features = [np.concatenate(pair) for pair in zip(features, added, strict=True)]
        return cls(
            n=len(image_ids),
            n_classes=len(classnames),
            features=features,
            texts=classes.weights.numpy() * (described["logit_scale"] / SCALE),
            votes=votes,
            examples=examples,
            described=described,
            encoders=encoders,
        )

    def fit(self, answers: Answers | None = None) -> LabelModel:
        """Learn the labels of the images, with some answers, and of the examples after them.

        Labellers without a vote have no part in the model.
        """
        given = answers or Answers.of(None, self.n_classes)
        n_examples = len(self.examples)
        if n_examples:
            rows = np.arange(self.n, self.n + n_examples)
            given = Answers(
                np.concatenate([given.rows, rows]),
                np.concatenate([given.shares, np.eye(self.n_classes)[self.examples]]),
                np.concatenate([given.drawn, np.zeros(n_examples, bool)]),
            )
        votes = {}
        for name, (classes, shares) in self.votes.items():
            if not (classes >= 0).any():
                continue
            added = ((0, n_examples), (0, 0))
            votes[name] = TopK(
                np.pad(classes, added, constant_values=-1), np.pad(shares, added)
            )
        return LabelModel().fit(
            self.features, votes, self.texts, given, n_classes=self.n_classes
        )


def _features(path: str | Path, image_ids: pa.ChunkedArray, schema: pa.Schema) -> Floats:
    features: Floats = read_features(str(path), image_ids, schema)[:].numpy()
    return features


def read_examples(
    path: str | Path, classnames: Sequence[str], models: Sequence[str]
) -> tuple[list[Floats], Ints]:
    """Return features [E, D] of examples by each model, and their classes [E].

    UserError: they are of other classes or models.
    """
    table = tables.read(path, tables.EXAMPLES)
    metadata = tables.read_metadata(path, ExamplesMetadata)
    label_of = {name: label for label, name in enumerate(classnames)}
    names = table["classname"].to_pylist()
    if not label_of.keys() >= set(names) or metadata.models != list(models):
        raise UserError(f"{path} belongs to other classes or models; {DELETE_AND_RERUN}.")
    features = tables.from_list_column(table["image_features"])
    ends = np.cumsum(metadata.widths)[:-1]
    return np.split(features, ends, axis=1), np.array([label_of[name] for name in names])


def answered_rows(
    answers: Mapping[str, Answer], images: pa.Table, classnames: Sequence[str]
) -> Answers:
    """Return answers about images of a table."""
    label_of = {name: label for label, name in enumerate(classnames)}
    names = pa.array(list(answers), pa.string())
    rows = pc.index_in(names, images["image_id"]).to_pylist()
    answer_of_row = {
        row: answer
        for row, answer in zip(rows, answers.values(), strict=True)
        if row is not None
    }
    known = sorted(row for row, one in answer_of_row.items() if one.kind != UNSURE)
    shares = np.zeros((len(known), len(classnames)))
    for place, row in enumerate(known):
        if answer_of_row[row].kind == CLASS:
            shares[place, label_of[str(answer_of_row[row].classname)]] = 1
    unsure = [one.phase == CHECK for one in answer_of_row.values() if one.kind == UNSURE]
    return Answers(
        rows=np.array(known, np.int64),
        shares=shares,
        drawn=np.array([answer_of_row[row].phase == CHECK for row in known], bool),
        unsure_chosen=unsure.count(False),
        unsure_drawn=unsure.count(True),
    )


def read_answers(path: str, images: pa.Table, classnames: Sequence[str]) -> Answers:
    """Return the answers of `latteclip teach` about images of a table IMAGES."""
    saved = teaching_schema("the dataset", classnames, images).read(Path(path))
    saved.warn(path, Path(path).parent)
    return answered_rows(saved.answers, images, classnames)
