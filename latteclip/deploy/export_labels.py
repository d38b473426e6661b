"""`latteclip labels export`: the labels of a dataset for other tools, as a file or a folder."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath, PurePosixPath
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
from latteclip.deploy.label_table import TakenLabels

TASKS, CONFIG = "tasks.json", "config.xml"  # of Label Studio
TABLE = "labels.csv"  # beside the folders of classes
FILES, FOLDERS = ("csv", "parquet"), ("label-studio", "imagefolder")  # the formats
LOCAL = "/data/local-files/?d="  # where Label Studio serves files of its machine
NOT_IN_XML = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")
# Images that may be left out, and the file in a dataset's results that names them.
LEAVE_OUT = {"unknown": "unknown.parquet", "duplicates": "duplicates.parquet"}
ARE = {
    "unknown": "may belong to none of the classes (is_unknown)",
    "duplicates": "show the same picture as another one (duplicate_of)",
}
# Suffixes that `torchvision.datasets.ImageFolder` looks for. It passes over others without a word.
READ_BY_TORCHVISION = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
)
QUALITY = 95  # of a JPEG that an image is converted to
# What some system does not take in a name: separators, Windows' signs, control characters.
UNFIT = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
LONGEST = 200  # bytes; a number has room after it
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # by Windows


def export_labels(
    folder: str, form: str, output: str, *, copy: bool = False, leave_out: Collection[str] = ()
) -> str:
    """Write the labels of the training images.

    Args:
        folder: results/<dataset>.
        form: one of FILES or FOLDERS.
        output: a file for the first two, a new or empty folder for the others.
        copy: of an image folder, images and not links to them.
        leave_out: kinds of images that are not exported, of LEAVE_OUT.

    Returns:
        Sentences on what was written.

    Raises:
        UserError: there are no labels, `output` cannot be written, or an image vanished.
    """
    if copy and form != "imagefolder":
        raise UserError(f"--copy is for --format imagefolder; {form} holds no images.")
    if form in FILES and os.path.isdir(output):
        raise UserError(f"--output {output} is a folder; name a file.")
    place = str(new_folder(output)) if form in FOLDERS else output
    for kind in leave_out:
        if not (Path(folder) / LEAVE_OUT[kind]).is_file():
            raise UserError(
                f"--leave-out {kind} reads {Path(folder) / LEAVE_OUT[kind]}, which does not exist; "
                "run the workflow first."
            )
    labels = label_table.read(folder)
    counts = {kind: pc.sum(is_it).as_py() for kind, is_it in _kinds(labels).items()}
    for kind in leave_out:
        wanted = pc.invert(_kinds(labels)[kind])
        labels = replace(labels, table=labels.table.filter(wanted))
    writers: dict[str, Callable[[TakenLabels, str], list[str]]] = {
        "csv": _csv,
        "parquet": _parquet,
        "label-studio": _label_studio,
        "imagefolder": _copies if copy else _links,
    }
    more = writers[form](labels, place)
    n = len(labels.table) - labels.table["label"].null_count
    return "\n".join(
        [
            f"{n} labels, {labels.worth}, are in {output}.",
            *_about_answers(labels, Path(folder)),
            *_about_kinds(counts, leave_out),
            *more,
        ]
    )


def _kinds(labels: TakenLabels) -> dict[str, pa.ChunkedArray]:
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


def _about_answers(labels: TakenLabels, folder: Path) -> list[str]:
    """Describe how a person's answers and the labels meet."""
    table, found = labels.table, []
    answered = table.filter(pc.is_valid(table["answered"]))
    if len(answered):
        label, fused = (answered[name].cast(pa.string()) for name in ("label", "fused_label"))
        changed = pc.sum(pc.not_equal(label, fused)).as_py() or 0
        found.append(
            f"A person answered about {len(answered)} of the images: {changed} labels are another "
            f"class by that, and {label.null_count} images of none of the classes have no label."
        )
    if label_table.has_answers(folder, "test"):
        found.append(
            "Answers about images of the test split change nothing here, since only training "
            f"images are exported; latteclip audit {folder} --split train asks about those."
        )
    return found


def _about_kinds(counts: Mapping[str, int | None], leave_out: Collection[str]) -> list[str]:
    """Say how many images of each kind in LEAVE_OUT there are."""
    found = []
    for kind, n in counts.items():
        if n and kind in leave_out:
            found.append(f"{n} images are left out ({kind}).")
        elif n:
            found.append(f"{n} of the images {ARE[kind]}; --leave-out {kind} exports without them.")
    return found


def _csv(labels: TakenLabels, output: str) -> list[str]:
    with replacing(output) as temporary:
        _write_rows(temporary, labels.table.column_names, tables.rows_of(labels.table))
    return []


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


def _parquet(labels: TakenLabels, output: str) -> list[str]:
    fitted = labels.calibration
    described = {
        **labels.described,
        "classnames": labels.classnames,
        "latteclip": __version__,
        "calibration": asdict(fitted) if fitted else {"demo_error": label_table.DEMO_ERROR},
    }
    with tables.writing(output, label_table.SCHEMA, described) as add:
        for batch in labels.table.to_batches(tables.CAPTION_ROWS):
            add(dict(zip(batch.schema.names, batch.columns, strict=True)))
    return []


# --- Label Studio --------------------------------------------------------------------------------


def _label_studio(labels: TakenLabels, output: str) -> list[str]:
    """Write tasks as Label Studio imports them, and the labelling interface."""
    _refuse_shards(labels, "Label Studio shows files; export them by --format imagefolder --copy")
    version = f"latteclip {__version__}, {labels.worth.split()[0].rstrip(';')}"
    tasks = (_task(row, version) for row in tables.rows_of(labels.table))
    with replacing(output) as folder:
        folder.mkdir()
        with (folder / TASKS).open("w", encoding="utf-8") as file:
            file.writelines(_json_list(tasks))
        (folder / CONFIG).write_text(_interface(labels.classnames), encoding="utf-8")
    return []


def _json_list(values: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The parts of a JSON list with one line per value."""
    between = "[\n"
    for value in values:
        yield between + json.dumps(value, ensure_ascii=False)
        between = ",\n"
    yield "\n]\n"


def _task(row: dict[str, Any], version: str) -> dict[str, Any]:
    """Return an image with what is known of it.

    A label of the workflow is a prediction that a person may correct, an answer of the audit an
    annotation.
    """
    known = {key: value for key, value in row.items() if value is not None and key != "path"}
    task: dict[str, Any] = {"data": {"image": LOCAL + quote(row["path"].lstrip("/")), **known}}
    if row["answered"] == row["label"] is not None:
        task["annotations"] = [{"result": [_chosen(row["label"])]}]
    if row["label"] is not None:
        prediction = {"model_version": version, "score": row["probability"]}
        task["predictions"] = [{**prediction, "result": [_chosen(row["fused_label"])]}]
    return task


def _chosen(classname: str) -> dict[str, Any]:
    """Return the part of a prediction or an annotation that names a class."""
    return {
        "from_name": "label",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": [_in_xml(classname)]},
    }


def _interface(classnames: Sequence[str]) -> str:
    """Return the labelling interface: an image, and one choice of the classes."""
    choices = "\n".join(f"    <Choice value={quoteattr(_in_xml(name))}/>" for name in classnames)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        '  <Choices name="label" toName="image" choice="single">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )


def _in_xml(text: str) -> str:
    """Return the text with characters spelt out that XML cannot hold."""
    return NOT_IN_XML.sub(lambda found: ascii(found[0])[1:-1], text)


# --- a folder of class folders -------------------------------------------------------------------


def _links(labels: TakenLabels, output: str) -> list[str]:
    _refuse_shards(labels, "no link leads into a shard; use --copy")
    return _image_folder(labels, output, _link)


def _link(source: str, target: Path) -> None:
    target.symlink_to(Path(source).absolute())


def _copies(labels: TakenLabels, output: str) -> list[str]:
    return _image_folder(labels, output, _copy)


def _copy(source: str, target: Path) -> None:
    if shard_member(source):
        target.write_bytes(_member(source))
    else:
        shutil.copyfile(source, target)


def _member(path: str) -> bytes:
    """Return the bytes of an image in a shard."""
    with _of_shard(path):
        return read_bytes(path)


@contextlib.contextmanager
def _of_shard(path: str) -> Iterator[None]:
    """Make a UserError of whatever is wrong with an image in a shard."""
    try:
        yield
    except Exception as error:  # pyarrow and Pillow fail in many ways on broken files
        raise UserError(
            f"Image {path} cannot be read ({first_line(error)}); replace its shard, or rerun the "
            "workflow, which leaves such images out."
        ) from None


def _convert(source: str, target: Path) -> None:
    """Write an image as a format that torchvision reads, upright and in RGB."""
    open_rgb(source).save(target, quality=QUALITY, subsampling=0)


def _refuse_shards(labels: TakenLabels, why: str) -> None:
    """UserError where images lie in shards, of which other programs know nothing."""
    for path in tables.Strings(labels.table["path"]):
        if shard_member(path):
            raise UserError(f"{path} lies in a shard: {why}.")


def _file_name(row: dict[str, Any]) -> PurePosixPath:
    """Return the name that an image has, or gets: a row of a table has a number and no suffix."""
    found = shard_member(row["path"])
    if found is None:
        return PurePosixPath(Path(row["path"]).name)
    name = PurePosixPath(PurePosixPath(row["image_id"]).name)
    if found.kind == "tar":
        return name
    with (
        _of_shard(row["path"]),
        Image.open(io.BytesIO(read_bytes(row["path"])), formats=FORMATS) as image,
    ):
        return PurePosixPath(f"{name}.{str(image.format).lower()}")


def _image_folder(
    labels: TakenLabels, output: str, place: Callable[[str, Path], None]
) -> list[str]:
    """Write a folder of each class with its images, and a table of all that is known."""
    table = labels.table.filter(pc.is_valid(labels.table["label"]))
    paths = tables.Strings(table["path"])
    vanished = [path for path in paths if not image_exists(path)]
    if vanished:
        raise UserError(
            f"{len(vanished)} of {len(paths)} images are not there, the first {vanished[0]}; run "
            "it in the folder of the results, or rerun the workflow."
        )
    folders = FolderNames()
    folders.new(TABLE)
    folder_of = {name: folders.new(name) for name in labels.classnames}
    files: dict[str, FolderNames] = {}  # by class
    converted = Counter[str]()

    with replacing(output) as folder:
        folder.mkdir()

        def placed(row: dict[str, Any]) -> dict[str, Any]:
            label = row["label"]
            if label is None:
                return {"file": None, **row}
            if label not in files:
                files[label] = FolderNames()
                (folder / folder_of[label]).mkdir()
            name = _file_name(row)
            suffix = name.suffix.lower()
            is_read = suffix in READ_BY_TORCHVISION
            if not is_read:
                converted[suffix or "no suffix"] += 1
                name = name.with_suffix(".png" if suffix == ".gif" else ".jpg")
            file = Path(folder_of[label], files[label].new(name.name))
            (place if is_read else _convert)(row["path"], folder / file)
            return {"file": file.as_posix(), **row}

        rows = map(placed, tables.rows_of(labels.table))
        _write_rows(folder / TABLE, ["file", *labels.table.column_names], rows)
    return [*_about_converted(converted), *_about_empty(set(labels.classnames) - set(files))]


def _about_converted(counts: Counter[str]) -> list[str]:
    if not counts:
        return []
    kinds = ", ".join(f"{n} {suffix}" for suffix, n in counts.most_common())
    return [
        f"{counts.total()} images are converted to JPEG or PNG, since torchvision's ImageFolder "
        f"does not read them as they are ({kinds})."
    ]


def _about_empty(classnames: Collection[str]) -> list[str]:
    if not classnames:
        return []
    return [
        f"{len(classnames)} classes have no image and so no folder, which torchvision's "
        f"ImageFolder would refuse: {one_line(', '.join(sorted(classnames)))}."
    ]


class FolderNames:
    """The names in one folder."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        # In lower case, for some systems do not tell cases apart: names, and their last numbers.
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def of(self, name: str) -> str:
        """The name that stands for this one, always the same."""
        if name not in self._of:
            self._of[name] = self.new(name)
        return self._of[name]

    def new(self, name: str) -> str:
        """A name like this one that was not given before."""
        path = PurePath(safe(name))
        found, key = path.name, path.name.casefold()
        number = self._numbers.get(key, 1)
        while found.casefold() in self._taken:
            number += 1
            found = f"{path.stem}_{number}{path.suffix}"
        self._numbers[key] = number
        self._taken.add(found.casefold())
        return found


def safe(name: str) -> str:
    """The name with `_` in the place of what some system refuses or hides."""
    found = UNFIT.sub("_", name).rstrip(" .")
    if found.startswith(".") or not found.strip() or RESERVED.fullmatch(found):
        found = f"_{found.lstrip('.')}"
    path = PurePath(found)
    room = LONGEST - len(path.suffix.encode())
    if len(path.stem.encode()) <= room or room <= 0:
        return found.encode()[:LONGEST].decode(errors="ignore")
    return path.stem.encode()[:room].decode(errors="ignore") + path.suffix
