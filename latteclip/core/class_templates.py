"""Names of the C classes, and the templates that make texts of them."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from latteclip.core.errors import UserError, suggestion
from latteclip.core.files import from_values

PLACE = "{}"


def clean_classname(name: str, replace: Mapping[str, str] | None = None) -> str:
    """Return a class name as CLIP reads it: in lower case, with replacements and single spaces.

    Letters with accents are single characters: folders of macOS may have two.
    """
    name = unicodedata.normalize("NFC", name)
    for old, new in (replace or {}).items():
        name = name.replace(old, new)
    return " ".join(name.lower().split())


def clean_classnames(names: Sequence[str], replace: Mapping[str, str]) -> list[str]:
    """Clean C names, at least two. UserError: one becomes empty, or two become equal."""
    first: dict[str, str] = {}
    for name in names:
        clean = clean_classname(name, replace)
        if not clean:
            raise UserError(
                f"Class name {name!r} is empty after clean-up; rename the class."
            )
        if clean in first:
            raise UserError(
                f"Class names {first[clean]!r} and {name!r} are both {clean!r} after clean-up; "
                "rename one of the classes."
            )
        first[clean] = name
    if len(first) < 2:
        raise UserError(f"A dataset needs at least two classes, found {list(names)}.")
    return list(first)


def fill(template: str, classname: str) -> str:
    """Return a template or prompt with a class name in place of {}."""
    return template.replace(PLACE, classname)


def class_texts(template: str, classnames: Sequence[str]) -> list[str]:
    """Return T(c) for every class: the C class descriptions (LatteCLIP, section 3.1)."""
    return [fill(template, name) for name in classnames]


@dataclass(frozen=True)
class ClassTemplates:
    """Templates of class texts, and other names of the classes, by name as CLIP reads it."""

    templates: list[str]  # each with {} for the name
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    # By the dataset, where it differs.
    written: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.templates or not all(PLACE in template for template in self.templates):
            raise UserError(f"template {self.templates} needs {PLACE} for the class name.")
        names = [name for others in self.synonyms.values() for name in others or [""]]
        if "" in names or len(set(names)) < len(names):
            raise UserError(
                f"class_synonyms has an empty name, or a name twice: {self.synonyms}."
            )

    @classmethod
    def of(
        cls,
        template: str | Sequence[str],
        synonyms: Mapping[str, Sequence[str]] | None = None,
    ) -> Self:
        """Build them from a dataset's `template` and `class_synonyms`, or raise UserError."""
        templates = [template] if isinstance(template, str) else list(template)
        cleaned = {
            clean_classname(name): [*map(clean_classname, others)]
            for name, others in (synonyms or {}).items()
        }
        return cls(templates, cleaned)

    @classmethod
    def described_by(cls, metadata: Mapping[str, Any]) -> Self:
        """Build them from the metadata of a file (`described`), or raise UserError."""
        values = {
            "templates": metadata.get("templates", [metadata.get("template")]),
            "synonyms": metadata.get("class_synonyms", {}),
            "written": metadata.get("written_names", {}),
        }
        return from_values(cls, values, cls.__name__)

    @property
    def template(self) -> str:
        """Return the first template, that of the class descriptions T(c)."""
        return self.templates[0]

    @property
    def described(self) -> dict[str, Any]:
        """Return them as metadata."""
        return {
            "template": self.template,
            "templates": self.templates,
            "class_synonyms": self.synonyms,
            "written_names": self.written,
        }

    def as_written(self, classnames: Sequence[str]) -> list[str]:
        """Return class names as the dataset writes them."""
        return [self.written.get(name, name) for name in classnames]

    def names(self, classnames: Sequence[str]) -> list[tuple[str, int]]:
        """Return every name with the row of its class, or raise UserError for a wrong synonym."""
        rows = {clean_classname(name): row for row, name in enumerate(classnames)}
        named = [(name, row) for row, name in enumerate(classnames)]
        for classname, others in self.synonyms.items():
            if classname not in rows:
                raise UserError(
                    f"class_synonyms has names for {classname!r}, which is not a class of the "
                    f"dataset; {suggestion(classname, rows)}"
                )
            if not rows.keys().isdisjoint(others):
                raise UserError(f"class_synonyms of {classname!r} names a class: {others}.")
            named += [(other, rows[classname]) for other in others]
        return named
