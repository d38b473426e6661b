"""Shards as WebDataset and Hugging Face `datasets` write them, by their public descriptions.

See "The WebDataset Format" of github.com/webdataset/webdataset, and the documentation of
`datasets.Image` and `ClassLabel`.
"""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(number, size=(12, 8), form="JPEG"):
    """A small image of its own."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 80)).save(buffer, form)
    return buffer.getvalue()


def tar_shard(path, samples, extra=()):
    """Write samples, (key, {suffix: bytes}), and `extra` headers without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mode, info.uname = len(content), 0o444, "bigdata"
                tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def labelled(numbers, form="JPEG"):
    """Samples of a tar with labels in `.cls`."""
    return [
        (f"{n:06d}", {"jpg": picture(n, form=form), "cls": str(n % 2).encode()})
        for n in numbers
    ]


def parquet_shard(path, *args, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parquet_bytes(*args, **options))
    return path


def parquet_bytes(contents, labels, names=None, rows=2, column="label"):
    """A Parquet file of images and labels, so many rows in a group."""
    label = {"_type": "ClassLabel", "names": names} if names else {"_type": "Value"}
    features = {"image": {"_type": "Image"}, column: label}
    table = pa.table(
        {
            "image": pa.array([{"bytes": one, "path": "a.jpg"} for one in contents], IMAGE),
            column: labels,
        }
    )
    described = json.dumps({"info": {"features": features}})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": described}), buffer, rows)
    return buffer.getvalue()
