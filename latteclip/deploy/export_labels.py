"""`latteclip labels export`: the labels of a dataset for other tools, as a file or a folder."""

import io
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip import __version__
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import new_folder, replacing, write_json
from latteclip.core.run_options import run_command
from latteclip.core.terminal import counted
from latteclip.data.images import (
    FORMATS,
    image_exists,
    open_rgb,
    read_image,
    shard_member,
)
from latteclip.deploy import label_table
from latteclip.deploy.label_table import LabelsMetadata

FOLDERS = ("label-studio", "imagefolder")  # formats of several files
TABLE = "labels.csv"  # beside the folders of classes
LOCAL = "/data/local-files/?d="  # where Label Studio serves files of its machine
LABEL_STUDIO = (
    "Label Studio shows the images of this machine if it is started with "
    "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/, "
    "and if the project has a local storage (Settings, Cloud Storage) with the images' folder."
)
# What torchvision's `ImageFolder` reads. It silently ignores other suffixes.
IMAGE_FOLDER_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)
QUALITY = 95  # quality of the JPEG that an image is converted to
# Not in a file name: separators, what Windows refuses, control characters, dots that hide or lead
# out of the folder.
UNFIT = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]|^\.+|[ .]+$')


def labels(
    action: Literal["export"],
    results: str,
    /,
    format: Literal["csv", "parquet", "label-studio", "imagefolder"],
    output: str,
    max_error: float | None = None,
    leave_out: Sequence[Literal["unknown", "duplicates"]] = (),
) -> str:
    """Export the labels of a dataset.

    Args:
        action: export
        format: the format
        output: a file, or a new folder for the last two formats
        max_error: accept as many labels as possible so that, with 95 % probability, at most this
            share of all labels is wrong and accepted; needs answers of latteclip teach
        leave_out: leave out images of no class (unknown), or all but one image of each set of
            duplicates (duplicates)
    """
    place = new_folder(output) if format in FOLDERS else Path(output)
    if place.suffix[1:] in WRITERS.keys() - {format}:
        raise UserError(
            f"--output {output} is a name of another format than --format {format}; "
            "change one of them."
        )
    folder = Path(results)
    table, described = label_table.read(folder, max_error)
    notes = []
    if max_error is not None:
        n = pc.sum(table["accepted"]).as_py()
        notes.append(
            f"{n:,} of {len(table):,} labels are accepted. With 95 % confidence, at most "
            f"{100 * max_error:g} % of all labels are wrong and accepted."
        )
        # Whose folders do not say which labels are accepted.
        if format == "imagefolder":
            table = table.filter(table["accepted"])
    before = len(table)
    if "unknown" in leave_out:
        if not (path := folder / "unknown.parquet").is_file():
            raise UserError(
                f"--leave-out unknown reads {path}, which does not exist yet; run "
                f"{run_command(folder, f'results/{folder.absolute().name}/{path.name}')}."
            )
        # A class by a person is not unknown.
        by_person = pc.and_(
            pc.is_valid(table["answered"]), pc.is_valid(table["label"])
        )
        table = table.filter(pc.or_(by_person, pc.invert(table["is_unknown"])))
    # Of each set of duplicates, one of the rest stays.
    table = label_table.with_duplicates(table, folder)
    if "duplicates" in leave_out:
        table = table.filter(pc.is_null(table["duplicate_of"]))
    if leave_out:
        notes.append(f"Left out: {counted(before - len(table), 'image')}.")
    with replacing(place) as temporary:
        WRITERS[format](temporary, table, described)
    if format == "label-studio":
        notes.append(LABEL_STUDIO)
    n = counted(len(table) - table["label"].null_count, "label")
    by = "that are not calibrated"
    if described.calibration:
        by = f"calibrated by {described.calibration.answers} answers"
    return "\n".join([f"Wrote {n} to {output}, with probabilities {by}.", *notes])


def _write_csv(path: Path, table: pa.Table, _: LabelsMetadata) -> None:
    rows = (row.values() for row in tables.rows_of(table))
    _write_rows(path, table.column_names, rows)


def _write_rows(
    path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        tables.write_csv(file, columns, rows)


def _write_parquet(path: Path, table: pa.Table, described: LabelsMetadata) -> None:
    types = [
        (column.name, getattr(column.type, "value_type", column.type))
        for column in table.schema
    ]
    columns = dict(zip(table.column_names, table.columns, strict=True))
    tables.write(path, columns, pa.schema(types), described)


def _write_label_studio(
    folder: Path, table: pa.Table, described: LabelsMetadata
) -> None:
    """Write tasks, and the interface in which a person corrects them."""
    kind = "calibrated" if described.calibration else "uncalibrated"
    version = f"latteclip {__version__}, {kind}"
    tasks = [_task(row, version) for row in tables.rows_of(table)]
    folder.mkdir()
    write_json(folder / "tasks.json", tasks)
    view = ET.Element("View")
    ET.SubElement(view, "Image", name="image", value="$image")
    choices = ET.SubElement(
        view, "Choices", name="label", toName="image", choice="single"
    )
    for name in described.classnames:
        ET.SubElement(choices, "Choice", value=name)
    ET.indent(view)
    ET.ElementTree(view).write(folder / "config.xml", encoding="utf-8")


def _task(row: dict[str, Any], version: str) -> dict[str, Any]:
    """Return an image as a task: a label is a prediction to correct, an answer an annotation."""
    if shard_member(row["path"]):
        raise UserError(
            f"{row['path']} lies in a shard, and Label Studio shows files; export them by --format "
            "imagefolder."
        )
    place = Path(row.pop("path")).absolute().as_posix().lstrip("/")
    known = {key: value for key, value in row.items() if value is not None}
    task: dict[str, Any] = {"data": {"image": LOCAL + quote(place), **known}}
    if row["label"] is None:  # none of the classes
        return task
    if row["answered"] is not None:
        task["annotations"] = [{"result": [_choice(row["label"])]}]
    prediction = {
        "model_version": version,
        "score": row["probability"],
        "result": [_choice(row["fused_label"])],
    }
    return {**task, "predictions": [prediction]}


def _choice(classname: str) -> dict[str, Any]:
    value = {"choices": [classname]}
    return {
        "from_name": "label",
        "to_name": "image",
        "type": "choices",
        "value": value,
    }


def _write_image_folder(
    folder: Path, table: pa.Table, described: LabelsMetadata
) -> None:
    """Write a folder of links, copies or conversions for each class, and the table of labels."""
    new_folder_name = unique_filenames()
    new_folder_name(TABLE)
    folders = {
        name: folder / new_folder_name(name) for name in described.classnames
    }
    new_name = {name: unique_filenames() for name in folders}
    folder.mkdir()

    def place(row: dict[str, Any]) -> list[Any]:
        if row["label"] is None:
            return [None, *row.values()]
        name = _file_name(row)
        is_read = name.suffix.lower() in IMAGE_FOLDER_SUFFIXES
        name = name if is_read else name.with_suffix(".jpg")
        target = folders[row["label"]] / new_name[row["label"]](name.name)
        target.parent.mkdir(exist_ok=True)
        _write_image(row["path"], target, is_read)
        return [target.relative_to(folder).as_posix(), *row.values()]

    rows = map(place, tables.rows_of(table))
    _write_rows(folder / TABLE, ["file", *table.column_names], rows)


def _write_image(path: str, target: Path, is_read: bool) -> None:
    if not is_read:  # the converted image is upright and in RGB
        open_rgb(path).save(target, quality=QUALITY, subsampling=0)
    elif shard_member(path):
        target.write_bytes(read_image(path))
    else:
        target.symlink_to(Path(path).absolute())


def _file_name(row: Mapping[str, Any]) -> PurePath:
    """Return the file name of an image, with the suffix of its format if it has another one."""
    path = row["path"]
    if not image_exists(path):
        raise UserError(
            f"Image {path} is not there; run it in the folder of the results, or rerun the "
            "workflow."
        )
    is_member = shard_member(path)
    name = PurePath(row["image_id"] if is_member else path)
    file = io.BytesIO(read_image(path)) if is_member else path
    with Image.open(file, formats=FORMATS) as image:
        # A JPEG with further pictures, as phones write it, is an MPO.
        kind = "JPEG" if image.format == "MPO" else str(image.format)
    is_right = Image.registered_extensions().get(name.suffix.lower()) == kind
    return name if is_right else name.with_suffix(f".{kind.lower()}")


WRITERS: dict[str, Callable[..., None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "label-studio": _write_label_studio,
    "imagefolder": _write_image_folder,
}


def unique_filenames() -> Callable[[str], str]:
    """Return a function that makes of names those of files in one folder, on every system."""
    taken = set[str]()
    numbers = Counter[str]()

    def new_name(name: str) -> str:
        path = PurePath(UNFIT.sub("_", name))
        unique = path.name
        while _same_file(unique) in taken:
            numbers[path.name] += 1
            unique = f"{path.stem}_{numbers[path.name] + 1}{path.suffix}"
        taken.add(_same_file(unique))
        return unique

    return new_name


def _same_file(name: str) -> str:
    """Return a text that is equal for names that are one file on Windows or macOS.

    Windows ignores case, and macOS also whether a letter and its accent are one character.
    """
    return unicodedata.normalize("NFD", name.casefold())
