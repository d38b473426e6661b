"""`latteclip labels export`: the labels of a dataset for other tools, as a file or a folder."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from PIL import Image

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import new_folder, replacing
from latteclip.core.version import __version__
from latteclip.data import members
from latteclip.data.images import FORMATS
from latteclip.deploy import taken_labels
from latteclip.deploy.folder_names import FolderNames
from latteclip.deploy.taken_labels import TakenLabels

TASKS, CONFIG = "tasks.json", "config.xml"  # of Label Studio
TABLE = "labels.csv"  # beside the folders of classes
FILES, FOLDERS = ("csv", "parquet"), ("label-studio", "imagefolder")  # the formats
LOCAL = "/data/local-files/?d="  # where Label Studio serves files of its machine


def export_labels(folder: str, form: str, output: str, *, copy: bool = False) -> str:
    """Write the labels of the training images.

    Args:
        folder: results/<dataset>.
        form: one of FILES or FOLDERS.
        output: a file for the first two, a new or empty folder for the others.
        copy: of an image folder, images and not links to them.

    Returns:
        One sentence on what was written.

    Raises:
        UserError: there are no labels, `output` cannot be written, or an image vanished.
    """
    if copy and form != "imagefolder":
        raise UserError(f"--copy is for --format imagefolder; {form} holds no images.")
    if form in FILES and os.path.isdir(output):
        raise UserError(f"--output {output} is a folder; name a file.")
    place = str(new_folder(output)) if form in FOLDERS else output
    labels = taken_labels.read(folder)
    writers: dict[str, Callable[[TakenLabels, str], None]] = {
        "csv": _csv,
        "parquet": _parquet,
        "label-studio": _label_studio,
        "imagefolder": _copies if copy else _links,
    }
    writers[form](labels, place)
    n = len(labels.table)
    return f"{n} labels, {labels.table['calibration'][0].as_py()}, are in {output}."


def _csv(labels: TakenLabels, output: str) -> None:
    with replacing(output) as temporary:
        _write_rows(temporary, labels.table.column_names, tables.rows_of(labels.table))


def _write_rows(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """CSV with empty cells for what is not known."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else value


def _parquet(labels: TakenLabels, output: str) -> None:
    fitted = labels.calibration
    described = {
        **labels.described,
        "classnames": labels.classnames,
        "latteclip": __version__,
        "calibration": asdict(fitted) if fitted else {"demo_error": taken_labels.DEMO_ERROR},
    }
    with tables.writing(output, taken_labels.SCHEMA, described) as add:
        for batch in labels.table.to_batches(tables.CAPTION_ROWS):
            add(dict(zip(batch.schema.names, batch.columns, strict=True)))


# --- Label Studio --------------------------------------------------------------------------------


def _label_studio(labels: TakenLabels, output: str) -> None:
    """Tasks with predictions as Label Studio imports them, and the labelling interface."""
    _refuse_shards(labels, "Label Studio shows files; export them by --format imagefolder --copy")
    with replacing(output) as folder:
        folder.mkdir()
        with (folder / TASKS).open("w", encoding="utf-8") as file:
            file.writelines(_json_list(map(_task, tables.rows_of(labels.table))))
        (folder / CONFIG).write_text(_interface(labels.classnames), encoding="utf-8")


def _json_list(values: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The parts of a JSON list with one line per value."""
    between = "[\n"
    for value in values:
        yield between + json.dumps(value, ensure_ascii=False)
        between = ",\n"
    yield "\n]\n"


def _task(row: dict[str, Any]) -> dict[str, Any]:
    """An image, what is known of it, and the label as a prediction that a person may correct."""
    known = {key: value for key, value in row.items() if value is not None and key != "path"}
    result = {
        "from_name": "label",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": [row["label"]]},
    }
    version = f"latteclip {__version__}, {row['calibration'].split()[0].rstrip(';')}"
    return {
        "data": {"image": LOCAL + quote(row["path"].lstrip("/")), **known},
        "predictions": [
            {
                "model_version": version,
                "score": row["probability"],
                "result": [result],
            }
        ],
    }


def _interface(classnames: Sequence[str]) -> str:
    """The labelling interface: an image, and one choice of the classes."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classnames)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        '  <Choices name="label" toName="image" choice="single">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )


# --- a folder of class folders -------------------------------------------------------------------


def _links(labels: TakenLabels, output: str) -> None:
    _refuse_shards(labels, "no link leads into a shard; use --copy")
    _image_folder(labels, output, lambda source, target: target.symlink_to(Path(source).absolute()))


def _copies(labels: TakenLabels, output: str) -> None:
    _image_folder(labels, output, _copy)


def _copy(source: str, target: Path) -> None:
    if members.member(source):
        target.write_bytes(members.read(source))
    else:
        shutil.copyfile(source, target)


def _refuse_shards(labels: TakenLabels, why: str) -> None:
    """UserError where images lie in shards, of which other programs know nothing."""
    for path in tables.Strings(labels.table["path"]):
        if members.member(path):
            raise UserError(f"{path} lies in a shard: {why}.")


def _file_name(row: dict[str, Any]) -> str:
    """The name that an image has, or gets: a row of a table has a number and no suffix."""
    name = PurePosixPath(row["image_id"]).name
    found = members.member(row["path"])
    if found is None:
        return Path(row["path"]).name
    if found.kind == "tar":
        return name
    content = io.BytesIO(members.read(row["path"]))
    with Image.open(content, formats=FORMATS) as image:
        return f"{name}.{str(image.format).lower()}"


def _image_folder(labels: TakenLabels, output: str, place: Callable[[str, Path], object]) -> None:
    """A folder of each class with its images, and a table of all that is known."""
    paths = tables.Strings(labels.table["path"])
    vanished = [path for path in paths if not members.exists(path)]
    if vanished:
        raise UserError(
            f"{len(vanished)} of {len(paths)} images are not there, the first {vanished[0]}; run "
            "it in the folder of the results, or rerun the workflow."
        )
    with replacing(output) as folder:
        folder.mkdir()
        classes, files = FolderNames(), {name: FolderNames() for name in labels.classnames}
        for name in labels.classnames:
            (folder / classes.of(name)).mkdir()

        def placed(row: dict[str, Any]) -> dict[str, Any]:
            file = Path(classes.of(row["label"]), files[row["label"]].new(_file_name(row)))
            place(row["path"], folder / file)
            return {**row, "file": file.as_posix()}

        rows = map(placed, tables.rows_of(labels.table))
        _write_rows(folder / TABLE, ["file", *labels.table.column_names], rows)
