"""Write labels as a folder that `datasets.load_dataset` reads, and the hub shows."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from latteclip.captions.pictures import read_image
from latteclip.deploy.label_table import LabelsMetadata

TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"
GROUP = 100  # rows in a row group, of which one is in memory
PART_BYTES = 500 * 2**20  # bytes of pictures after which a new file begins
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
VALUES = {"double": "float64", "float": "float32"}  # types of Arrow by another name


def write_datasets(
    folder: Path, table: pa.Table, described: LabelsMetadata, *, copy: bool
) -> None:
    """Write Parquet files with images, their labels as ClassLabel, and a dataset card.

    With `copy`, images are bytes, else paths of this machine.
    """
    schema = _schema(table.schema)
    features = _features(schema, described.classnames)
    described_by = {"info": {"features": features}}
    schema = schema.with_metadata({"huggingface": json.dumps(described_by)})
    (folder / "data").mkdir(parents=True)
    writer = None
    n_bytes = 0
    n_files = 0
    try:
        for columns in _pieces(table, described.classnames, copy=copy):
            if writer is None:
                path = folder / "data" / f"train-{n_files:05d}.parquet"
                writer = pq.ParquetWriter(path, schema, compression="zstd")
                n_files += 1
            writer.write_table(pa.table(columns, schema=schema))
            n_bytes += sum(len(image["bytes"] or b"") for image in columns["image"])
            if n_bytes > PART_BYTES:
                writer.close()
                writer = None
                n_bytes = 0
    finally:
        if writer is not None:
            writer.close()
    card = _card(table, described, features)
    card.save(folder / "README.md")


def _schema(of_table: pa.Schema) -> pa.Schema:
    """Return image and label, and the other columns with names of classes as strings."""
    fields = [pa.field("image", IMAGE), pa.field("label", pa.int64())]
    for field in of_table:
        if field.name not in ("path", "label"):
            fields.append(
                pa.field(field.name, getattr(field.type, "value_type", field.type))
            )
    return pa.schema(fields)


def _features(schema: pa.Schema, classnames: list[str]) -> dict[str, Any]:
    """Return the columns as `datasets` describes them."""
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": classnames, "_type": "ClassLabel"},
    }
    for field in schema:
        if field.name not in features:
            dtype = VALUES.get(str(field.type), str(field.type))
            features[field.name] = {"dtype": dtype, "_type": "Value"}
    return features


def _pieces(
    table: pa.Table, classnames: list[str], *, copy: bool
) -> Iterator[Mapping[str, Any]]:
    number = {name: label for label, name in enumerate(classnames)}
    for start in range(0, max(1, len(table)), GROUP):
        piece = table.slice(start, GROUP)
        columns = {name: piece[name].to_pylist() for name in piece.column_names}
        images = []
        for path in columns.pop("path"):
            name = path.rpartition("/")[2]
            if copy:
                images.append({"bytes": read_image(path), "path": name})
            else:
                images.append({"bytes": None, "path": str(Path(path).absolute())})
        labels = [None if name is None else number[name] for name in columns["label"]]
        yield {**columns, "image": images, "label": labels}


def _card(
    table: pa.Table, described: LabelsMetadata, features: Mapping[str, Any]
) -> DatasetCard:
    """Return the dataset card, whose metadata the hub reads."""
    listed: list[dict[str, Any]] = []
    for name, feature in features.items():
        if feature["_type"] == "Image":
            listed.append({"name": name, "dtype": "image"})
        elif feature["_type"] == "ClassLabel":
            names = {str(label): word for label, word in enumerate(feature["names"])}
            listed.append({"name": name, "dtype": {"class_label": {"names": names}}})
        else:
            listed.append({"name": name, "dtype": feature["dtype"]})
    size = next((word for most, word in SIZES if len(table) < most), "n>1M")
    data = DatasetCardData(
        task_categories=["image-classification"],
        tags=["latteclip"],
        size_categories=[size],
        annotations_creators=["machine-generated"],
        license="other",
        license_name="that-of-the-images",
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*"}],
            }
        ],
        dataset_info={
            "features": listed,
            "splits": [{"name": "train", "num_examples": len(table)}],
        },
    )
    card: DatasetCard = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        described=described,
        images=len(table),
        unlabelled=table["label"].null_count,
        columns=[name for name in features if name not in ("image", "label")],
    )
    return card
