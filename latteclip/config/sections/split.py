"""The section `split`."""

from typing import Annotated, Literal

from pydantic import Field

from latteclip.config.sections.base import (
    Line,
    Positive,
    Section,
    Share,
    inner,
    key,
    optional_key,
)

Suffix = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.]*$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Classes = Annotated[int, Field(ge=2)]


class CountsSection(Section):
    """Numbers that the index must have."""

    train: Positive | None = optional_key("training images, validation images included")
    test: Positive | None = optional_key("test images")
    classes: Classes | None = optional_key("classes")


class ListsSection(Section):
    """The list of each split, with lines of image and class name; for shards, a glob."""

    train: Line | None = optional_key("list or shards of the training images")
    val: Line | None = optional_key("list or shards of the validation images")
    test: Line | None = optional_key("list or shards of the test images")


class SplitSection(Section):
    """How the folder of a dataset is read."""

    kind: Literal["coop", "folders", "csv", "lists", "webdataset", "parquet"] = key(
        "folders",
        "coop: a CoOp split JSON; folders: class folders; csv: a table; lists: a list per split; "
        "webdataset, parquet: shards",
    )
    test_fraction: Fraction = key(
        0.3, "share of labelled images for testing, if nothing else decides"
    )
    max_corrupt: Share = key(
        0.01, "share of images, rounded up, that may be broken and left out"
    )
    file: Line | None = optional_key(
        "the split JSON or table, relative to the dataset's folder"
    )
    lists: ListsSection = inner(ListsSection)
    suffix: str = optional_key(
        "suffix that turns an image of a list into a path", default=""
    )
    image: Suffix | None = optional_key(
        "suffix of the images in tar shards, if samples have several images"
    )
    label: Line | None = optional_key(
        "labels of shards: a suffix (cls; txt; json:field) or a Parquet column"
    )
    classes: Line | None = optional_key(
        "file of class names, one per line, in label order; folders: the names of the folders; "
        "discover: a stage proposes them"
    )
    examples: Line | None = optional_key(
        "folder with a few images of each class that are not in the dataset, <class>/*.jpg, which "
        "count as answers and name the classes if nothing else does"
    )
    images: Line = key(".", "folder to which the split's paths are relative")
    classname_replace: dict[str, str] = optional_key(
        "replacements that turn folder names into class names", default={"_": " "}
    )
    counts: CountsSection = inner(CountsSection)
