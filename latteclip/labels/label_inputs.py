"""Read what labels are made of: features, class texts, votes, answers and examples.

Examples are images of known classes that are not in the dataset. A person chose them to show what
a class looks like, so they count as answers do. They are rows after the N images, without votes.

Letters: N images, E examples, C classes, D embedding width, K options of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.clip.classifier import load_classifier
from latteclip.clip.features import read_features
from latteclip.core import tables
from latteclip.core.answers import CHECK, UNSURE, Answer, AnswerFile
from latteclip.labels.fusion_report import FusionReport
from latteclip.labels.label_model import SCALE, LabelModel
from latteclip.labels.votes import NO_VOTE, Answers, Floats, Ints, Votes

LIKELIHOOD = "likelihood"  # the kind whose scores contain how common an answer is
ITERATIONS = 50  # after which means of images and of classes have converged


@dataclass(frozen=True)
class LabelFiles:
    """The files of a dataset that labels are made of, None where there is none."""

    images: str  # an IMAGES table
    pseudo_labels: str  # a PSEUDO_LABELS table
    class_embeddings: str  # W0
    duplicates: str | None = None  # a DUPLICATES table
    adapted: str | None = None  # W0 adapted to the images
    examples: str | None = None  # an EXAMPLES table
    answers: str | None = None  # those of `latteclip teach`

    @classmethod
    def of(cls, folder: Path, *, examples: bool = False) -> "LabelFiles":
        """Return the files of a dataset's results, with examples if there are some."""
        return cls(
            images=str(folder / "images.parquet"),
            pseudo_labels=str(folder / "pseudo_labels.parquet"),
            class_embeddings=str(folder / "class_embeddings.safetensors"),
            duplicates=str(folder / "duplicates.parquet"),
            examples=str(folder / "examples.parquet") if examples else None,
        )


@dataclass(frozen=True)
class LabellerTable:
    """A labeller, and its votes."""

    name: str
    kind: str  # a kind of the key `labellers`
    table: str  # CLASS_SCORES
    # Begin of the names of its columns in FUSED_LABELS, if it has some.
    column: str | None = None
    leaked: bool = False  # whether its captioner is given the zero-shot labels


@dataclass(frozen=True)
class LabelInputs:
    """What the labels of N images are made of."""

    images: pa.Table  # N rows of the index
    classnames: list[str]
    # [N + E, D] of CLIP, and of each image encoder beside it.
    features: list[Floats]
    texts: Floats  # [C, D], scaled as LabelModel expects them
    votes: dict[str, Votes]  # [N, K] of each labeller
    examples: Ints  # [E] their classes
    groups: Ints  # [N + E] near-duplicates have one number
    described: dict[str, Any]  # CLIP

    @classmethod
    def read(
        cls,
        files: LabelFiles,
        images: pa.Table,
        classnames: list[str],
        labellers: Sequence[LabellerTable] = (),
        image_encoders_paths: Sequence[str] = (),
    ) -> "LabelInputs":
        """Read the features of N images, and the votes of each labeller."""
        image_ids = images["image_id"]
        classes, described = load_classifier(files.class_embeddings)
        features = [
            read_features(path, image_ids).read()
            for path in (files.pseudo_labels, *image_encoders_paths)
        ]
        examples = np.zeros(0, np.int64)
        if files.examples is not None:
            table = tables.read(files.examples)
            examples = pc.index_in(
                table["classname"], pa.array(classnames)
            ).to_numpy()
            side_by_side = tables.from_list_column(table["image_features"])
            ends = np.cumsum([one.shape[1] for one in features])
            added = np.split(side_by_side, ends[:-1], axis=1)
            features = [
                np.concatenate(pair) for pair in zip(features, added, strict=True)
            ]
        return cls(
            images=images,
            classnames=classnames,
            features=features,
            texts=classes.weights.numpy() * (described["logit_scale"] / SCALE),
            votes={
                one.name: read_votes(
                    one.table, image_ids, without_bias=one.kind == LIKELIHOOD
                )
                for one in labellers
            },
            examples=examples,
            groups=_groups(files.duplicates, image_ids, len(features[0])),
            described=described,
        )

    @classmethod
    def of_report(
        cls, report: FusionReport, folder: Path, images: pa.Table
    ) -> "LabelInputs":
        """Read what the labels of a dataset's results were made of, for some of its images."""
        labellers = [
            LabellerTable(one.name, one.kind, str(folder / str(one.table)))
            for one in report.labellers
        ]
        encoders = [str(folder / path) for path in report.image_encoders]
        files = LabelFiles.of(folder, examples=bool(report.examples))
        return cls.read(files, images, report.classnames, labellers, encoders)

    @property
    def n(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def ids(self, rows: Ints) -> list[str]:
        """Return the names of some images."""
        return list(self.images["image_id"].take(pa.array(rows)).to_pylist())

    def fit(self, answers: Answers | None = None) -> LabelModel:
        """Learn the labels of the images, with some answers, and of the examples after them.

        Labellers without a vote have no part in the model.
        """
        n_classes = len(self.classnames)
        given = Answers.of(answers, n_classes)
        shown = Answers.of(dict(enumerate(self.examples, self.n)), n_classes)
        rows = ((0, len(self.examples)), (0, 0))
        votes = {
            name: Votes(
                np.pad(one.options, rows, constant_values=NO_VOTE),
                np.pad(one.shares, rows),
            )
            for name, one in self.votes.items()
            if one.has.any()
        }
        return LabelModel().fit(
            self.features,
            votes,
            self.texts,
            Answers(
                np.concatenate([given.rows, shown.rows]),
                np.concatenate([given.shares, shown.shares]),
                np.concatenate([given.drawn, shown.drawn]),
            ),
            n_classes=n_classes,
            groups=self.groups,
        )


def _groups(path: str | None, image_ids: pa.ChunkedArray, n: int) -> Ints:
    """Return the group [n] of each row: near-duplicates are in that of the first of them."""
    rows = pd.Series(np.arange(n))
    if path is None:
        return rows.to_numpy()
    sets = tables.read(path).to_pandas().set_index("image_id")["set"]
    # NaN: of no set.
    set_of = sets.reindex(image_ids.to_pandas()).reset_index(drop=True)
    return rows.groupby(set_of).transform("first").fillna(rows).to_numpy(np.int64)


# --- votes ---------------------------------------------------------------------------------------


def read_votes(
    path: str, image_ids: pa.ChunkedArray, *, without_bias: bool = False
) -> Votes:
    """Return the votes of N images in a CLASS_SCORES table, normalised over their options.

    `without_bias` subtracts the mean score of each class: the likelihood of an answer contains how
    common the answer is, whatever the image shows.
    """
    options, scores = read_class_scores(path, image_ids)
    if without_bias:
        scores -= _class_means(options, scores)[options]
    best = scores.max(axis=1, keepdims=True)
    best[~np.isfinite(best)] = 0
    return Votes.of((options, np.exp(scores - best)))


def read_class_scores(
    path: str, image_ids: pa.ChunkedArray
) -> tuple[Ints, Floats]:
    """Return the options of N images and their log-probabilities, from a CLASS_SCORES table.

    Both are [N, K], int64 and float32. Where an image has fewer options than K, which is at least
    1, the class is -1 and the score minus infinity. UserError names images that the table lacks.
    """
    classes, values = (
        tables.lookup_column(path, name, image_ids)
        for name in ("options", "log_probabilities")
    )
    lengths = pc.fill_null(pc.list_value_length(classes), 0).to_numpy()
    shape = len(lengths), max(1, lengths.max(initial=0))
    options = np.full(shape, NO_VOTE, np.int64)
    scores = np.full(shape, -np.inf, np.float32)
    given = np.arange(shape[1]) < lengths[:, None]  # [N, K]
    options[given] = pc.list_flatten(classes).to_numpy()
    scores[given] = pc.list_flatten(values).to_numpy()
    return options, scores


def _class_means(options: Ints, scores: Floats) -> Floats:
    """Return the effects [C] of classes on finite scores [N, K], beside those of images.

    They are alternating means: where images have different options, the mean scores of a class
    alone would contain how good the other options were.
    """
    images, places = np.isfinite(scores).nonzero()
    classes = options[images, places]
    left = scores[images, places].astype(np.float64)
    n_classes = int(options.max(initial=0)) + 1

    def means_of(groups: Ints, n: int) -> Floats:
        counts = np.bincount(groups, minlength=n).clip(min=1)
        return np.asarray(np.bincount(groups, left, n) / counts)

    means = np.zeros(n_classes)
    for _ in range(ITERATIONS):
        left -= means_of(images, len(scores))[images]
        step = means_of(classes, n_classes)
        means += step
        left -= step[classes]
    return means.astype(np.float32)


# --- answers -------------------------------------------------------------------------------------


def read_answers(
    path: str | None, images: pa.Table, classnames: Sequence[str]
) -> Answers:
    """Return the answers of `latteclip teach`, if any, about images of a table IMAGES."""
    if path is None:
        return Answers.of(None, len(classnames))
    saved = AnswerFile(Path(path), images, classnames).read()
    saved.warn(path, Path(path).parent)
    return answered_rows(saved.answers, images, classnames, len(images))


def drawing_order(images: pa.Table) -> Ints:
    """Return the rows of images in the order in which they are drawn to check labels.

    It is random, and follows from contents: images that are added later stand among the others.
    """
    return np.asarray(pc.sort_indices(images["checksum"]), np.int64)


def answered_rows(
    answers: Mapping[str, Answer],
    images: pa.Table,
    classnames: Sequence[str],
    n: int,
) -> Answers:
    """Return answers about images of a table, which are some of n images.

    Checks that follow an image without an answer in the drawing order are no random sample of the
    images of now, nor is what a person drew from fewer images: they teach.
    """
    columns = ["image_id", "kind", "classname", "phase", "drawn_from"]
    given = pd.DataFrame(map(vars, answers.values()), columns=columns)
    names = pa.array(given["image_id"], pa.string())
    given["row"] = pc.index_in(names, images["image_id"]).to_pandas()
    given = given.dropna(subset="row").sort_values("row")
    order = drawing_order(images)
    is_answered = np.isin(order, given["row"])
    sample = order[np.logical_and.accumulate(is_answered)]
    in_sample = given["row"].isin(sample) | (
        given["drawn_from"].astype(float) >= n
    )
    is_drawn = (given["phase"] == CHECK) & in_sample
    is_unsure = given["kind"] == UNSURE
    known = given[~is_unsure]
    # -1: none of them.
    labels = pd.Categorical(known["classname"], [*classnames]).codes
    return Answers(
        rows=known["row"].to_numpy(np.int64),
        shares=(labels[:, None] == np.arange(len(classnames))).astype(np.float64),
        drawn=is_drawn[~is_unsure].to_numpy(bool),
        unsure_chosen=int((is_unsure & ~is_drawn).sum()),
        unsure_drawn=int((is_unsure & is_drawn).sum()),
    )
