"""The Parquet tables that stages write and read: schemas, metadata, and how they are read.

Metadata that one package alone reads stand there: an edit reruns the stages that import its module.
"""

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latteclip.core.errors import DELETE_AND_RERUN, UserError, first_line
from latteclip.core.files import from_values, replacing, values_of

Record = TypeVar("Record")


STRING, INT, FLOAT = pa.string(), pa.int32(), pa.float32()
INTS, FLOATS = pa.list_(INT), pa.list_(FLOAT)


def _schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema(types)


IMAGES = _schema(
    image_id=STRING,  # the path inside the split: unique
    path=STRING,  # where the file lies, relative to the working directory
    split=STRING,  # train, val or test
    label=INT,  # null where unknown
    classname=STRING,  # null where the label is
    # Checksum of the file's bytes, by which answers know the image.
    checksum=pa.binary(16),
    hashes=pa.binary(96),  # perceptual hashes, see latteclip.data.view_hashes
)
# Images that show the same picture as another one.
DUPLICATES = _schema(
    image_id=STRING,  # in the order of the index
    set=INT,  # number of the set of images that show one picture
)
PSEUDO_LABELS = _schema(
    image_id=STRING,
    pseudo_label=INT,
    confidence=FLOAT,  # softmax of the scaled scores at the pseudo-label
    topk_labels=INTS,  # best first
    image_features=FLOATS,  # [D], L2-normalised
)
CAPTIONS = _schema(
    id=STRING,  # the image_id; of a group, that of the image it was drawn for
    members=pa.list_(STRING),  # the image_ids in the picture
    prompt=STRING,
    # Empty where the model wrote nothing, or was not reached or asked.
    caption=STRING,
    # "stop", "length" (cut), error or, beyond max_images, not asked.
    finish_reason=STRING,
    error=STRING,  # why there is no answer
)
FUSED_LABELS = _schema(
    image_id=STRING,  # id of a training image
    adapted_label=INT,  # zero-shot, adapted to the images
    image_label=INT,  # by image prototypes; null where the votes tell nothing
    # By the caption or by class scores alone: null where there are none for the dataset, the
    # adapted label with confidence 0 where there is none for the image.
    caption_label=INT,
    caption_confidence=FLOAT,
    lmm_label=INT,
    lmm_confidence=FLOAT,
    fused_label=INT,
    fused_confidence=FLOAT,
    # The likeliest classes, best first, and their probabilities: 0 for none of the classes.
    fused_topk_labels=INTS,
    fused_topk_probabilities=FLOATS,
    # By each labeller, in the order of the report; -1: no vote.
    labeller_labels=INTS,
)
SOFT_LABELS = ("fused_topk_labels", "fused_topk_probabilities")
IMAGE_FEATURES = _schema(
    image_id=STRING,
    image_features=FLOATS,  # L2-normalised, by CLIP or a model beside it
)
# Features of images in the store of a dataset, by one model.
STORED_FEATURES = _schema(
    checksum=pa.binary(16),  # of the file's bytes, as in IMAGES
    image_features=FLOATS,
)
# Images of known classes that are not in the dataset.
EXAMPLES = _schema(
    path=STRING,
    classname=STRING,
    image_features=FLOATS,  # by CLIP and each image encoder, side by side
)
# What captions or class scores say of training images that judge classifiers.
VOTES = _schema(
    image_id=STRING,
    # [C] probabilities of classes by labellers alone, 0 without a vote.
    vote=FLOATS,
    head=INT,  # by image_prototypes, of which the image has no part
    joint_head=INT,  # by image_prototypes_encoders; without encoders the same
)
CLASS_SCORES = _schema(
    image_id=STRING,  # id of a training image
    options=INTS,  # CLIP's best class first; empty where none is scored
    # Natural logarithm for each option, perhaps -inf.
    log_probabilities=FLOATS,
    error=STRING,  # why there are no scores, though they were asked for
)
PREDICTIONS = _schema(
    image_id=STRING,
    label=INT,  # null where unknown
    prediction=INT,
)
# An image may have two rows: a classifier made of votes predicts a held-out image without the vote
# of the image, and an example with it.
TRAIN_PREDICTIONS = _schema(image_id=STRING, prediction=INT)
# The images of an audit, in the order in which they are asked about.
PLAN = _schema(
    image_id=STRING,
    checksum=pa.binary(16),
    stratum=pa.int8(),
)
# Images of every split, by how likely they belong to none of the classes.
UNKNOWN = _schema(
    image_id=STRING,
    score=FLOAT,  # the higher, the likelier; see latteclip.clip.classifier
    captioner_score=FLOAT,  # the same by class scores; null where there are none
    # Above the threshold of the captioner's score if any, or else CLIP's.
    is_unknown=pa.bool_(),
)
TOPK = 5  # best classes of an image that PSEUDO_LABELS has, and that metrics count
CAPTION_ROWS = 10_000  # rows in a row group of CAPTIONS
AT_ONCE = 4096  # values of a column that are Python objects at once
HISTORY = _schema(  # a training
    step=INT,
    epoch=INT,
    lr=FLOAT,
    loss=FLOAT,
    agreement=FLOAT,  # share of the batch whose prediction is its pseudo-label
)
LABEL_COLUMNS = frozenset({"label", "classname"})
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # begin a formula in a spreadsheet


# Each flag of a run, and its footnote in a table.
FLAGS = {
    "supervised": "reads the labels of the training images: an upper bound, not an unsupervised "
    "method",
    "ours": "not in the paper",
    "collapsed": "predictions collapsed in training: fewer than half of the classes are predicted, "
    "or hardly any prediction agrees with its pseudo-label",
}


@dataclass
class IndexMetadata:
    """The metadata of IMAGES."""

    classnames: list[str]  # as CLIP reads them, in the order of the labels
    # That differ, by class name.
    written_names: dict[str, str] = field(default_factory=dict)
    # Files that are no images, by suffix.
    skipped: dict[str, int] = field(default_factory=dict)
    # Images of each whole split, of a limited run.
    drawn_from: dict[str, int] | None = None

    def as_written(self, names: Iterable[str]) -> list[str]:
        """Return class names as the person or the dataset writes them."""
        return [self.written_names.get(name, name) for name in names]


@dataclass
class ClassesMetadata:
    """The metadata of tables whose labels and predictions are positions among class names."""

    classnames: list[str]


@dataclass
class VotesMetadata:
    """The metadata of VOTES."""

    classnames: list[str]
    unfit: str  # why they cannot compare classifiers; "": they can


@dataclass
class EncoderMetadata:
    """The metadata of IMAGE_FEATURES."""

    model: str  # as the key `image_encoders` names it
    width: int  # of its features


@dataclass
class UnknownMetadata:
    """The metadata of UNKNOWN."""

    classnames: list[str]
    answers: int = 0  # of a person, from which the threshold follows


def write(
    path: str | Path,
    columns: Mapping[str, Any],
    schema: pa.Schema,
    metadata: object | None = None,
) -> None:
    """Write one table with its metadata, a dataclass, whole or not at all."""
    with writing(path, schema, metadata) as add:
        add(columns)


@contextlib.contextmanager
def writing(
    path: str | Path, schema: pa.Schema, metadata: object | None = None
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write one table in pieces, whole or not at all. Its pages bear checksums.

    Yields a function that appends columns or a table as one row group. The caller may set fields of
    `metadata`, a dataclass, until all pieces are written. Each is stored as JSON.
    """
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(
            temporary, schema, compression="zstd", write_page_checksum=True
        ) as file,
    ):
        yield lambda columns: file.write_table(pa.table(columns, schema=schema))
        values = [] if metadata is None else sorted(values_of(metadata).items())
        file.add_key_value_metadata(
            {key: json.dumps(value, ensure_ascii=False) for key, value in values}
        )


def read(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, or some of its columns, or raise UserError."""
    with _opened(path) as file:
        table = file.read(columns=columns and list(columns))
        return table.select(columns or table.column_names)


def read_pieces(
    path: str | Path, columns: Sequence[str], rows: int
) -> Iterator[pa.RecordBatch]:
    """Read some columns of a table, at most so many rows at a time."""
    with _opened(path) as file:
        # Given all row groups, it would read their bytes beforehand.
        for group in range(file.num_row_groups):
            yield from file.iter_batches(rows, [group], list(columns))


def read_metadata(path: str | Path, record: type[Record]) -> Record:
    """Read the metadata of a table, without its rows, into a dataclass, or raise UserError."""
    with _opened(path) as file:
        stored = file.metadata.metadata or {}
        values = {
            key.decode(): json.loads(value)
            for key, value in stored.items()
            if key != b"ARROW:schema"
        }
    return from_values(record, values, str(path))


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[pq.ParquetFile]:
    """Open a table. UserError: it is absent, or damaged, perhaps where the body reads it."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); {DELETE_AND_RERUN}, which writes it."
        ) from None


class Strings(Sequence[str]):
    """A column of strings in Arrow's memory, of which forked processes make no copies."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        value = self.column[index]
        return Strings(value) if isinstance(index, slice) else value.as_py()


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, of which some thousands are Python objects at once."""
    for batch in table.to_batches(AT_ONCE):
        yield from batch.to_pylist()


def list_column(rows: npt.NDArray[Any]) -> pa.ListArray:
    """Return [N, K] as a column of lists."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(rows.shape[1])
    return pa.ListArray.from_arrays(
        offsets, np.ascontiguousarray(rows).reshape(-1)
    )


def from_list_column(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return [N, K] from a column of lists of equal length."""
    return pc.list_flatten(column).to_numpy().reshape(len(column), -1)  # type: ignore[no-any-return]


def read_unlabelled(
    path: str | Path, *, training: bool
) -> tuple[pa.Table, list[str]]:
    """Read an image index without its labels, for stages that must not see them.

    Returns the table without `label` and `classname`, and the C class names in label order. With
    `training` it has only the images that are not in the test split.
    """
    table = read(
        path, [name for name in IMAGES.names if name not in LABEL_COLUMNS]
    )
    if training:
        table = table.filter(pc.not_equal(table["split"], "test"))
    return table, read_metadata(path, IndexMetadata).classnames


def lookup_column(
    path: str | Path, column: str, ids: pa.ChunkedArray
) -> pa.ChunkedArray:
    """Return a column of a table for ids in its first column, or raise UserError."""
    with _opened(path) as file:
        key = file.schema_arrow.names[0]
        table = file.read([key, column])
    return table[column].take(find_rows(ids, table[key], path))


def write_csv(
    file: IO[str], columns: Sequence[str], rows: Iterable[Iterable[object]]
) -> int:
    """Write rows to an open file, with cells as `csv_cell` returns them; return their number."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    n = 0
    for row in rows:
        writer.writerow(map(csv_cell, row))
        n += 1
    return n


def csv_cell(value: object) -> object:
    """Return a value as CSV has it: booleans in lower case, six digits of a float.

    A text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return f"{value:.6f}" if isinstance(value, float) else value


def from_csv_cell(text: str) -> str:
    """Return a text as it was before `csv_cell`."""
    return (
        text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text
    )


def find_rows(
    ids: pa.ChunkedArray, known: pa.ChunkedArray, path: str | Path
) -> npt.NDArray[np.int32]:
    """Return the row of each id among the known ids, or raise UserError that names the path."""
    rows = pc.index_in(ids, known)
    if rows.null_count:
        first = ids.filter(pc.is_null(rows))[0].as_py()
        raise UserError(
            f"{path} does not fit the other tables: {rows.null_count} of {len(ids)} images are in "
            f"one of them only, the first {first!r}; {DELETE_AND_RERUN}."
        )
    return rows.to_numpy()  # type: ignore[no-any-return]
