"""`latteclip labels export`: the labels of a dataset for other tools, as a file or a folder."""

import csv
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip import __version__
from latteclip.captions.pictures import read_image
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import new_folder, replacing
from latteclip.core.run_options import run_command
from latteclip.core.terminal import counted
from latteclip.data.images import FORMATS, open_rgb, shard_member
from latteclip.deploy import label_table
from latteclip.deploy.label_table import LabelsMetadata

FOLDERS = ("label-studio", "imagefolder")  # formats of several files
TABLE = "labels.csv"  # beside the folders of classes
LOCAL = "/data/local-files/?d="  # where Label Studio serves files of its machine
LABEL_STUDIO = (
    "Label Studio shows the images of this machine if it is started with "
    "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/."
)
NOT_IN_XML = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")
# Kinds of images that may be left out. A file of this name in a dataset's results has them.
LEAVE_OUT = {
    "unknown": "possibly of none of the classes (is_unknown)",
    "duplicates": "with the same picture as another image (duplicate_of)",
}
# Suffixes that `torchvision.datasets.ImageFolder` looks for. It silently ignores others.
READ_BY_TORCHVISION = (
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
# Not allowed in a file name on some system: separators, Windows' signs, control characters.
UNFIT = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
LONGEST = 200  # bytes; a number has room after it


def export_labels(
    folder: str,
    form: str,
    output: str,
    *,
    leave_out: Collection[str] = (),
    max_error: float | None = None,
    false_discovery: float | None = None,
) -> str:
    """Write the labels of the training images, and return sentences on what was written.

    The arguments are those of `latteclip labels export`, and `form` is its format. Raises UserError
    where there are no labels, `output` cannot be written, or an image vanished.
    """
    place = new_folder(output) if form in FOLDERS else Path(output)
    results = Path(folder)
    for kind in leave_out:
        if not (path := results / f"{kind}.parquet").is_file():
            raise UserError(
                f"--leave-out {kind} reads {path}, which does not exist yet; run "
                f"{run_command(folder, f'results/{results.absolute().name}/{path.name}')}."
            )
    table, described = label_table.read(results)
    notes: list[str] = []
    if share := max_error or false_discovery:
        on_average = max_error is None
        taken, promise = label_table.accepted(results, share, on_average=on_average)
        number = pc.if_else(taken, 0, pa.scalar(None, pa.int32()))
        guarantee = pa.DictionaryArray.from_arrays(number, pa.array([promise]))
        table = table.append_column("accepted", taken).append_column("guarantee", guarantee)
        notes.append(promise)
        if form == "imagefolder":  # whose folders do not say which labels are accepted
            n_refused = len(table) - pc.sum(taken).as_py()
            table = table.filter(taken)
            notes.append(
                f"Left out: {counted(n_refused, 'image')} without an accepted label."
            )
    kinds = _kinds(table)
    is_left = np.ones(len(table), dtype=bool)
    for kind in leave_out:
        is_left &= ~kinds[kind]
    table = table.filter(pa.array(is_left))
    with replacing(place) as temporary:
        WRITERS[form](temporary, table, described)
    n = len(table) - table["label"].null_count
    notes += _about_answers(table)
    if form == "label-studio":
        notes.append(LABEL_STUDIO)
    for kind, is_kind in kinds.items():
        if count := is_kind.sum():
            what = "Left out" if kind in leave_out else f"--leave-out {kind} omits"
            notes.append(f"{what}: {counted(count, 'image')} {LEAVE_OUT[kind]}.")
    return "\n".join(
        [f"Wrote {counted(n, 'label')} to {output}, {_probabilities(described)}.", *notes]
    )


def _kinds(table: pa.Table) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which images are of each kind in LEAVE_OUT. A class by a person is not unknown."""
    label, answered = (table[name].cast(pa.string()) for name in ("label", "answered"))
    by_person = pc.fill_null(pc.equal(label, answered), fill_value=False)
    unknown = pc.and_not(pc.fill_null(table["is_unknown"], fill_value=False), by_person)
    return {
        "unknown": unknown.to_numpy(),
        "duplicates": pc.is_valid(table["duplicate_of"]).to_numpy(),
    }


def _probabilities(described: LabelsMetadata) -> str:
    if described.calibration is None:
        return "with probabilities that are not calibrated"
    return f"with probabilities calibrated by {described.calibration.answers} answers"


def _about_answers(table: pa.Table) -> list[str]:
    n = len(table) - table["answered"].null_count
    return [f"A person answered about {counted(n, 'image')} of them."] if n else []


def _write_csv(path: Path, table: pa.Table, _: LabelsMetadata) -> None:
    _write_rows(path, table.column_names, tables.rows_of(table))


def _write_rows(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([tables.csv_cell(row[name]) for name in columns])


def _write_parquet(path: Path, table: pa.Table, described: LabelsMetadata) -> None:
    types = [
        (column.name, getattr(column.type, "value_type", column.type))
        for column in table.schema
    ]
    with tables.writing(path, pa.schema(types), described) as add:
        for batch in table.to_batches(tables.CAPTION_ROWS):
            add(dict(zip(batch.schema.names, batch.columns, strict=True)))


def _write_label_studio(folder: Path, table: pa.Table, described: LabelsMetadata) -> None:
    for path in tables.Strings(table["path"]):
        if shard_member(path):
            raise UserError(
                f"{path} lies in a shard, and Label Studio shows files; export them by --format "
                "imagefolder."
            )
    kind = "calibrated" if described.calibration else "uncalibrated"
    tasks = (
        _task(row, f"latteclip {__version__}, {kind}") for row in tables.rows_of(table)
    )
    folder.mkdir()
    with (folder / "tasks.json").open("w", encoding="utf-8") as file:
        file.write("[\n")
        for number, task in enumerate(tasks):
            if number > 0:
                file.write(",\n")
            file.write(json.dumps(task, ensure_ascii=False))
        file.write("\n]\n")
    names = (quoteattr(_in_xml(name)) for name in described.classnames)
    choices = "\n".join(f"    <Choice value={name}/>" for name in names)
    (folder / "config.xml").write_text(
        '<View>\n  <Image name="image" value="$image"/>\n'
        '  <Choices name="label" toName="image" choice="single">\n'
        f"{choices}\n  </Choices>\n</View>\n",
        encoding="utf-8",
    )


def _task(row: dict[str, Any], version: str) -> dict[str, Any]:
    """Return an image as a task: a label is a prediction to correct, an answer an annotation."""
    place = Path(row["path"]).absolute().as_posix().lstrip("/")
    data = {"image": LOCAL + quote(place)}
    for key, value in row.items():
        if value is not None and key != "path":
            data[key] = value
    task: dict[str, Any] = {"data": data}
    if row["answered"] == row["label"] is not None:
        task["annotations"] = [{"result": [_choice(row["label"])]}]
    if row["label"] is not None:
        prediction = {"model_version": version, "score": row["probability"]}
        task["predictions"] = [{**prediction, "result": [_choice(row["fused_label"])]}]
    return task


def _choice(classname: str) -> dict[str, Any]:
    value = {"choices": [_in_xml(classname)]}
    return {"from_name": "label", "to_name": "image", "type": "choices", "value": value}


def _in_xml(text: str) -> str:
    return NOT_IN_XML.sub(lambda match: ascii(match[0])[1:-1], text)


def _write_image_folder(folder: Path, table: pa.Table, described: LabelsMetadata) -> None:
    names = described.classnames
    new_name = unique_filenames()
    new_name(TABLE)
    folders = {name: (folder / new_name(name), unique_filenames()) for name in names}
    folder.mkdir()

    def place(row: dict[str, Any]) -> dict[str, Any]:
        if row["label"] is None:
            return {"file": None, **row}
        class_folder, new_name = folders[row["label"]]
        class_folder.mkdir(exist_ok=True)
        name = _file_name(row)
        is_read = name.suffix.lower() in READ_BY_TORCHVISION
        if not is_read:
            name = name.with_suffix(".jpg")
        target = class_folder / new_name(name.name)
        if not is_read:  # the converted image is upright and in RGB
            open_rgb(row["path"]).save(target, quality=QUALITY, subsampling=0)
        elif shard_member(row["path"]):
            target.write_bytes(read_image(row["path"]))
        else:
            target.symlink_to(_existing(row["path"]))
        return {"file": target.relative_to(folder).as_posix(), **row}

    rows = map(place, tables.rows_of(table))
    _write_rows(folder / TABLE, ["file", *table.column_names], rows)


WRITERS: dict[str, Callable[..., None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "label-studio": _write_label_studio,
    "imagefolder": _write_image_folder,
}


def _existing(path: str) -> Path:
    if not os.path.isfile(path):
        raise UserError(
            f"Image {path} is not there; run it in the folder of the results, or rerun the "
            "workflow."
        )
    return Path(path).absolute()


def _file_name(row: Mapping[str, Any]) -> PurePath:
    """Return a file name for an image. An image in a Parquet shard has no suffix."""
    member = shard_member(row["path"])
    if member is None or member.kind == "tar":
        return PurePath(PurePath(row["image_id" if member else "path"]).name)
    with Image.open(io.BytesIO(read_image(row["path"])), formats=FORMATS) as image:
        return PurePath(f"{PurePath(row['image_id']).name}.{str(image.format).lower()}")


def unique_filenames() -> Callable[[str], str]:
    """Return a function that makes of names those of files in one folder, on every system."""
    taken = set[str]()
    numbers = Counter[str]()

    def new_name(name: str) -> str:
        path = PurePath(sanitized(name))
        unique = path.name
        key = _same_file(unique)
        while _same_file(unique) in taken:
            numbers[key] += 1
            unique = f"{path.stem}_{numbers[key] + 1}{path.suffix}"
        taken.add(_same_file(unique))
        return unique

    return new_name


def _same_file(name: str) -> str:
    """Return a text that is equal for names that are one file on Windows or macOS.

    Windows ignores case, and macOS also whether a letter and its accent are one character.
    """
    return unicodedata.normalize("NFD", name.casefold())


def sanitized(name: str) -> str:
    """Return the name with `_` for what a system refuses, hides or runs, cut to LONGEST."""
    name = UNFIT.sub("_", name).rstrip(" .")
    if name.startswith((".", *tables.FORMULA)) or not name.strip():
        name = f"_{name.lstrip('.')}"
    stem, suffix = map(str.encode, os.path.splitext(name))
    stem = stem[: max(0, LONGEST - len(suffix))]
    return (stem + suffix)[:LONGEST].decode(errors="ignore")
