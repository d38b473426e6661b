"""`latteclip labels export`: the labels of a dataset for other tools, as a file or a folder."""

import csv
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from latteclip import __version__
from latteclip.core import tables
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import new_folder, replacing
from latteclip.core.terminal import one_line
from latteclip.data.images import FORMATS, image_exists, open_rgb, read_bytes, shard_member
from latteclip.deploy import label_table
from latteclip.deploy.label_table import LabelTable

TASKS, CONFIG = "tasks.json", "config.xml"  # of Label Studio
TABLE = "labels.csv"  # beside the folders of classes
FILES, FOLDERS = ("csv", "parquet"), ("label-studio", "imagefolder")  # the formats
LOCAL = "/data/local-files/?d="  # where Label Studio serves files of its machine
NOT_IN_XML = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")
# Images that may be left out. A file of this name in a dataset's results names them.
LEAVE_OUT = {
    "unknown": "may belong to none of the classes (is_unknown)",
    "duplicates": "show the same picture as another one (duplicate_of)",
}
# Suffixes that `torchvision.datasets.ImageFolder` looks for. It silently ignores others.
READ_BY_TORCHVISION = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
)
QUALITY = 95  # of a JPEG that an image is converted to
# Not allowed in a file name on some system: separators, Windows' signs, control characters.
UNFIT = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
LONGEST = 200  # bytes; a number has room after it
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # by Windows


def export_labels(
    folder: str,
    form: str,
    output: str,
    *,
    copy: bool = False,
    leave_out: Collection[str] = (),
    max_error: float | None = None,
    false_discovery: float | None = None,
) -> str:
    """Write the labels of the training images.

    Args:
        folder: results/<dataset>.
        form: one of FILES or FOLDERS.
        output: a file for FILES, a new or empty folder for FOLDERS.
        copy: whether an image folder has copies of images in place of links.
        leave_out: kinds of images that are not exported, of LEAVE_OUT.
        max_error: the share of all labels that may be wrong and accepted.
        false_discovery: the share of the accepted labels that may be wrong on average.

    Returns:
        Sentences on what was written.

    Raises:
        UserError: there are no labels, `output` cannot be written, or an image vanished.
    """
    if copy and form != "imagefolder":
        raise UserError(f"--copy is for --format imagefolder; {form} holds no images.")
    if form in FILES and os.path.isdir(output):
        raise UserError(f"--output {output} is a folder; name a file.")
    place = new_folder(output) if form in FOLDERS else Path(output)
    for kind in leave_out:
        if not (path := Path(folder) / f"{kind}.parquet").is_file():
            raise UserError(
                f"--leave-out {kind} reads {path}, which does not exist; run the workflow first."
            )
    labels, promise = label_table.read(folder), ""
    if max_error is not None or false_discovery is not None:
        taken, promise = label_table.accepted(Path(folder), max_error, false_discovery)
        table = labels.table.append_column("accepted", taken)
        guarantee = pa.DictionaryArray.from_arrays(
            pc.if_else(taken, 0, pa.scalar(None, pa.int32())), pa.array([promise])
        )
        labels = replace(labels, table=table.append_column("guarantee", guarantee))
    counts = {kind: pc.sum(is_kind).as_py() for kind, is_kind in _kinds(labels).items()}
    for kind in leave_out:
        wanted = pc.invert(_kinds(labels)[kind])
        labels = replace(labels, table=labels.table.filter(wanted))
    notes: list[str] = []
    with replacing(place) as temporary:
        if form == "csv":
            _write_csv(temporary, labels.table.column_names, tables.rows_of(labels.table))
        elif form == "parquet":
            _write_parquet(temporary, labels)
        elif form == "label-studio":
            _write_label_studio(temporary, labels)
        else:
            notes = _write_image_folder(temporary, labels, copy=copy)
    n = len(labels.table) - labels.table["label"].null_count
    lines = [f"{n} labels, {labels.calibration_error}, are in {output}."]
    lines += [promise] if promise else []
    lines += _about_answers(labels, Path(folder))
    for kind, count in counts.items():
        if count and kind in leave_out:
            lines.append(f"{count} images are left out ({kind}).")
        elif count:
            lines.append(
                f"{count} of the images {LEAVE_OUT[kind]}; --leave-out {kind} exports without them."
            )
    return "\n".join([*lines, *notes])


def _kinds(labels: LabelTable) -> dict[str, pa.ChunkedArray]:
    """Return which images are of each kind in LEAVE_OUT.

    An image to which a person gave a class is not unknown.
    """
    table = labels.table
    label, answered = (table[name].cast(pa.string()) for name in ("label", "answered"))
    by_person = pc.fill_null(pc.equal(label, answered), fill_value=False)
    unknown = pc.fill_null(table["is_unknown"], fill_value=False)
    return {
        "unknown": pc.and_not(unknown, by_person),
        "duplicates": pc.is_valid(table["duplicate_of"]),
    }


def _about_answers(labels: LabelTable, folder: Path) -> list[str]:
    """Describe what a person's answers changed."""
    table, lines = labels.table, []
    answered = table.filter(pc.is_valid(table["answered"]))
    if len(answered):
        label, fused = (answered[name].cast(pa.string()) for name in ("label", "fused_label"))
        changed = pc.sum(pc.not_equal(label, fused)).as_py() or 0
        lines.append(
            f"A person answered about {len(answered)} of the images: {changed} labels are another "
            f"class by that, and {label.null_count} images of none of the classes have no label."
        )
    if label_table.has_answers(folder, "test"):
        lines.append(
            "Answers about images of the test split change nothing here, since only training "
            f"images are exported; latteclip audit {folder} --split train asks about those."
        )
    return lines


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write CSV with empty cells for unknown values."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: tables.csv_cell(value) for key, value in row.items()} for row in rows
        )


def _write_parquet(path: Path, labels: LabelTable) -> None:
    fitted = labels.calibration
    described = {
        **labels.described,
        "classnames": labels.classnames,
        "latteclip": __version__,
        "calibration": asdict(fitted) if fitted else {"demo_error": label_table.DEMO_ERROR},
    }
    schema = label_table.SCHEMA
    for field in label_table.GUARANTEE:
        schema = schema.append(field) if field.name in labels.table.column_names else schema
    with tables.writing(path, schema, described) as add:
        for batch in labels.table.to_batches(tables.CAPTION_ROWS):
            add(dict(zip(batch.schema.names, batch.columns, strict=True)))


# --- Label Studio --------------------------------------------------------------------------------


def _write_label_studio(folder: Path, labels: LabelTable) -> None:
    """Write tasks as Label Studio imports them, and the labelling interface."""
    _refuse_shards(labels, "Label Studio shows files; export them by --format imagefolder --copy")
    kind = "calibrated" if labels.calibration else "uncalibrated"
    tasks = (_task(row, f"latteclip {__version__}, {kind}") for row in tables.rows_of(labels.table))
    folder.mkdir()
    with (folder / TASKS).open("w", encoding="utf-8") as file:
        file.write("[\n")
        for number, task in enumerate(tasks):
            file.write(",\n" * (number > 0) + json.dumps(task, ensure_ascii=False))
        file.write("\n]\n")
    choices = "\n".join(
        f"    <Choice value={quoteattr(_in_xml(name))}/>" for name in labels.classnames
    )
    (folder / CONFIG).write_text(
        '<View>\n  <Image name="image" value="$image"/>\n'
        '  <Choices name="label" toName="image" choice="single">\n'
        f"{choices}\n  </Choices>\n</View>\n",
        encoding="utf-8",
    )


def _task(row: dict[str, Any], version: str) -> dict[str, Any]:
    """Return an image as a task.

    A label of the workflow is a prediction that a person may correct, an answer of the audit an
    annotation.
    """
    known = {key: value for key, value in row.items() if value is not None and key != "path"}
    task: dict[str, Any] = {"data": {"image": LOCAL + quote(row["path"].lstrip("/")), **known}}
    if row["answered"] == row["label"] is not None:
        task["annotations"] = [{"result": [_choice(row["label"])]}]
    if row["label"] is not None:
        prediction = {"model_version": version, "score": row["probability"]}
        task["predictions"] = [{**prediction, "result": [_choice(row["fused_label"])]}]
    return task


def _choice(classname: str) -> dict[str, Any]:
    """Return the part of a prediction or an annotation that names a class."""
    return {
        "from_name": "label",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": [_in_xml(classname)]},
    }


def _in_xml(text: str) -> str:
    """Escape characters that XML cannot hold."""
    return NOT_IN_XML.sub(lambda match: ascii(match[0])[1:-1], text)


# --- a folder of class folders -------------------------------------------------------------------


def _write_image_folder(folder: Path, labels: LabelTable, *, copy: bool) -> list[str]:
    """Write a folder of each class with its images, and a table. Return what to mind."""
    if not copy:
        _refuse_shards(labels, "no link leads into a shard; use --copy")
    paths = tables.Strings(labels.table.filter(pc.is_valid(labels.table["label"]))["path"])
    vanished = [path for path in paths if not image_exists(path)]
    if vanished:
        raise UserError(
            f"{len(vanished)} of {len(paths)} images are not there, the first {vanished[0]}; run "
            "it in the folder of the results, or rerun the workflow."
        )
    folders = UniqueFilenames()
    folders.new(TABLE)
    folder_of = {name: folders.new(name) for name in labels.classnames}
    files: dict[str, UniqueFilenames] = {}  # by class
    converted = Counter[str]()
    folder.mkdir()

    def place(row: dict[str, Any]) -> dict[str, Any]:
        label = row["label"]
        if label is None:
            return {"file": None, **row}
        if label not in files:
            files[label] = UniqueFilenames()
            (folder / folder_of[label]).mkdir()
        name = _file_name(row)
        suffix = name.suffix.lower()
        is_read = suffix in READ_BY_TORCHVISION
        if not is_read:
            converted[suffix or "no suffix"] += 1
            name = name.with_suffix(".png" if suffix == ".gif" else ".jpg")
        file = Path(folder_of[label], files[label].new(name.name))
        _place_image(row["path"], folder / file, convert=not is_read, copy=copy)
        return {"file": file.as_posix(), **row}

    rows = map(place, tables.rows_of(labels.table))
    _write_csv(folder / TABLE, ["file", *labels.table.column_names], rows)
    notes = []
    if converted:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in converted.most_common())
        notes.append(
            f"{converted.total()} images are converted to JPEG or PNG, since torchvision's "
            f"ImageFolder does not read them as they are ({kinds})."
        )
    if empty := sorted(set(labels.classnames) - set(files)):
        notes.append(
            f"{len(empty)} classes have no image and so no folder, which torchvision's "
            f"ImageFolder would refuse: {one_line(', '.join(empty))}."
        )
    return notes


def _place_image(source: str, target: Path, *, convert: bool, copy: bool) -> None:
    """Convert, link or copy an image. A converted one is upright and in RGB."""
    if convert:
        open_rgb(source).save(target, quality=QUALITY, subsampling=0)
    elif not copy:
        target.symlink_to(Path(source).absolute())
    elif shard_member(source):
        target.write_bytes(_shard_bytes(source))
    else:
        shutil.copyfile(source, target)


def _shard_bytes(path: str) -> bytes:
    """Return the bytes of an image in a shard; raise UserError where they cannot be read."""
    try:
        return read_bytes(path)
    except Exception as error:  # pyarrow and Pillow fail in many ways on broken files
        raise UserError(
            f"Image {path} cannot be read ({first_line(error)}); replace its shard, or rerun the "
            "workflow, which leaves such images out."
        ) from None


def _refuse_shards(labels: LabelTable, why: str) -> None:
    """Raise UserError if images lie in shards, which other programs cannot read."""
    for path in tables.Strings(labels.table["path"]):
        if shard_member(path):
            raise UserError(f"{path} lies in a shard: {why}.")


def _file_name(row: dict[str, Any]) -> PurePath:
    """Return a file name for an image. A row of a Parquet shard has a number and no suffix."""
    member = shard_member(row["path"])
    if member is None:
        return PurePath(PurePath(row["path"]).name)
    name = PurePath(row["image_id"]).name
    if member.kind == "tar":
        return PurePath(name)
    with Image.open(io.BytesIO(_shard_bytes(row["path"])), formats=FORMATS) as image:
        return PurePath(f"{name}.{str(image.format).lower()}")


class UniqueFilenames:
    """Names in one folder that every system takes. Equal names get numbers."""

    def __init__(self) -> None:
        # In lower case, since some systems ignore case.
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}  # the last number of each name

    def new(self, name: str) -> str:
        """Return a name like this one that was not returned before."""
        path = PurePath(sanitized(name))
        unique, key = path.name, path.name.casefold()
        number = self._numbers.get(key, 1)
        while unique.casefold() in self._taken:
            number += 1
            unique = f"{path.stem}_{number}{path.suffix}"
        self._numbers[key] = number
        self._taken.add(unique.casefold())
        return unique


def sanitized(name: str) -> str:
    """Return the name with `_` for what some system refuses or hides."""
    name = UNFIT.sub("_", name).rstrip(" .")
    if name.startswith(".") or not name.strip() or RESERVED.fullmatch(name):
        name = f"_{name.lstrip('.')}"
    path = PurePath(name)
    room = LONGEST - len(path.suffix.encode())
    if len(path.stem.encode()) <= room or room <= 0:
        return name.encode()[:LONGEST].decode(errors="ignore")
    return path.stem.encode()[:room].decode(errors="ignore") + path.suffix
