"""Classes that images marked unknown may show: proposed, and added to the list of classes."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latteclip.config.sections.split import SplitSection
from latteclip.config.stage_params import FOLDER_LINK
from latteclip.core import tables
from latteclip.core.class_history import PROPOSAL
from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError
from latteclip.core.files import write_text
from latteclip.core.folder_names import CLASSES, lines_of
from latteclip.core.run_options import run_command
from latteclip.core.terminal import one_line
from latteclip.discover import grouping
from latteclip.discover.grouping import MIN_IMAGES, Evidence
from latteclip.discover.looks import linked
from latteclip.discover.names import Ints, read_names
from latteclip.discover.naming import name_classes
from latteclip.discover.proposal import class_name, is_unnamed
from latteclip.labels.features import read_features
from latteclip.labels.label_sources import whiten

SHOWN = 3  # images of a group


@dataclass(frozen=True)
class NewClass:
    """A group of images marked unknown that look alike."""

    name: str | None  # None: they share no name
    image_ids: list[str]

    def sentence(self) -> str:
        """Return what the group is, in words."""
        called = "have no common name"
        if self.name is not None:
            called = f"are called '{one_line(self.name)}'"
        some = ", ".join(one_line(image, 60) for image in self.image_ids[:SHOWN])
        return f"{len(self.image_ids)} images look alike and {called}, such as {some}."


def propose_new_classes(results: str | Path) -> list[NewClass]:
    """Return groups of the training images that are marked unknown, the largest first.

    A group with the name of a class is left out: its images are unusual ones of that class.
    UserError: no stage has marked images.
    """
    folder = Path(results)
    index, classnames = tables.read_unlabelled(folder / "images.parquet", training=True)
    ids = index["image_id"]
    marked = tables.lookup_column(
        folder / "unknown.parquet", tables.UNKNOWN, "image_id", "is_unknown", ids
    )
    rows = np.flatnonzero(marked.to_numpy())
    if len(rows) < MIN_IMAGES:
        return []
    looks = whiten(read_features(str(folder / "pseudo_labels.parquet"), ids))
    evidence = Evidence.of(looks.centred[:].numpy(), read_names(_answers(folder, ids)))
    some = _of_rows(evidence, rows)
    labels = _grouped(some)
    n_classes = int(labels.max()) + 1
    named = name_classes(labels, some.terms, n_classes)
    image_ids = np.array(ids.to_pylist(), object)[rows]
    classes = []
    for k in range(n_classes):
        first = named.names[k][0]
        name = None if is_unnamed(first) else first
        if name is None or clean_classname(name) not in classnames:
            classes.append(NewClass(name, image_ids[labels == k].tolist()))
    large = [found for found in classes if len(found.image_ids) >= MIN_IMAGES]
    return sorted(large, key=lambda found: (-len(found.image_ids), found.image_ids))


def _answers(folder: Path, ids: pa.ChunkedArray) -> list[str]:
    """Return what the captioner said of each image, empty where it was not asked.

    Captions of prompts with pseudo-labels do not count, for they repeat the classes.
    """
    for name in ("names.parquet", "captions/images.parquet"):
        if not (folder / name).is_file():
            continue
        table = tables.read(folder / name, tables.CAPTIONS, ["id", "prompt", "caption"])
        if pc.count_distinct(table["prompt"]).as_py() > 1:
            continue
        rows = pc.index_in(ids, table["id"].combine_chunks())
        answers = table["caption"].take(rows)
        return answers.fill_null("").to_pylist()  # type: ignore[no-any-return]
    return [""] * len(ids)


def _of_rows(evidence: Evidence, rows: Ints) -> Evidence:
    """Return the evidence about some images, with the weights of names by all images."""
    terms = replace(evidence.terms, counts=evidence.terms.counts[rows])
    return replace(
        evidence,
        looks=evidence.looks[rows],
        names=evidence.names[rows],
        reliability=evidence.reliability[rows],
        best=evidence.best[rows],
        terms=terms,
    )


def _grouped(evidence: Evidence) -> Ints:
    """Return groups [N] by names and looks, or by looks alone where no image has a name."""
    start = None if (evidence.best >= 0).any() else linked(evidence.looks)
    groups = grouping.group(evidence, start=start)
    steps = grouping.merges(evidence, groups.labels)
    n_classes = grouping.suggested_number(steps, groups.n_groups, least=1)
    owner = grouping.cut(steps, groups.n_groups, n_classes)
    labels: Ints = owner[groups.labels]
    return labels


def show_new_classes(results: str) -> str:
    """Return the proposals in words, with the command that takes the first over."""
    classes = propose_new_classes(results)
    if not classes:
        return f"No {MIN_IMAGES} images of {results} that are marked unknown look alike."
    named = [found.name for found in classes if found.name]
    name = named[0] if named else "NAME"
    command = f"latteclip classes {shlex.quote(results)} --add {shlex.quote(name)}"
    lines = [found.sentence() for found in classes]
    return "\n".join([*lines, "", f"To add a class: {command}"])


def change_list(
    results: str | Path, name: str | None, before: str | None = None
) -> str | None:
    """Append a class to the list of classes, and remove another, where it still is in the list.

    Returns the name as written. UserError: it is empty or in use, or no file lists the classes.
    """
    path = list_of_classes(Path(results))
    names = [line for line in lines_of(path) if line != before]
    plain = None
    if name is not None:
        plain = class_name(name)
        replacements = SplitSection().classname_replace
        used = {clean_classname(line, replacements) for line in names}
        if not plain or clean_classname(plain, replacements) in used:
            raise UserError(f"The class name {name[:100]!r} is empty or in use in {path}.")
        names.append(plain)
    write_text(path, "".join(f"{line}\n" for line in names))
    return plain


def show_added_class(results: str, name: str) -> str:
    """Append a class to the list of classes, and return what follows."""
    plain = change_list(results, name)
    return (
        f"Added {plain!r} to {list_of_classes(Path(results))}. Your answers about other classes "
        "stay. Run the workflow again, and labels, models and pages follow:\n"
        f"  {run_command(results)}"
    )


def list_of_classes(folder: Path) -> Path:
    """Return the file that lists the classes: of the user's folder, or as proposed."""
    dataset = folder.absolute().name
    path = folder.absolute().parent.parent / FOLDER_LINK.format(dataset=dataset) / CLASSES
    if (folder / PROPOSAL).is_file():
        path = folder / CLASSES
    if path.is_file():
        return path
    raise UserError(
        f"No {CLASSES} lists the classes of {dataset}. Add a line to the file that split.classes "
        "names, or, if folders are the classes, add a folder with the name and a few images."
    )
