"""Names of the C classes, and the templates that make texts of them."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from latteclip.core.errors import UserError, suggestion

PLACE = "{}"


def clean_classname(name: str, replace: Mapping[str, str] | None = None) -> str:
    """Return a class name as CLIP reads it: in lower case, with replacements and single spaces.

    Letters with accents are single characters: folders of macOS may have two.
    """
    name = unicodedata.normalize("NFC", name)
    for old, new in (replace or {}).items():
        name = name.replace(old, new)
    return " ".join(name.lower().split())


def clean_classnames(
    names: Sequence[str], replace: Mapping[str, str]
) -> list[str]:
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
        raise UserError(
            f"A dataset needs at least two classes, found {list(names)}: classes.txt has one a "
            "line, and folders of classes lie right in image_dir."
        )
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

    @classmethod
    def of(
        cls, template: str | Sequence[str], synonyms: Mapping[str, Sequence[str]]
    ) -> Self:
        """Build them from a dataset's `template` and `class_synonyms`."""
        templates = [template] if isinstance(template, str) else list(template)
        cleaned = {
            clean_classname(name): [*map(clean_classname, others)]
            for name, others in synonyms.items()
        }
        return cls(templates, cleaned)

    @property
    def template(self) -> str:
        """Return the first template, that of the class descriptions T(c)."""
        return self.templates[0]

    def as_written(self, classnames: Sequence[str]) -> list[str]:
        """Return class names as the dataset writes them."""
        return [self.written.get(name, name) for name in classnames]

    def names(self, classnames: Sequence[str]) -> list[tuple[str, int]]:
        """Return every name with the row of its class, or raise UserError for a wrong synonym."""
        rows = {clean_classname(name): row for row, name in enumerate(classnames)}
        named = [(name, row) for row, name in enumerate(classnames)]
        known = set(rows)
        for classname, others in self.synonyms.items():
            if classname not in rows:
                raise UserError(
                    f"class_synonyms has names for {classname!r}, which is not a class of the "
                    f"dataset; {suggestion(classname, rows)}"
                )
            for other in others or [""]:
                if not other or other in known:
                    raise UserError(
                        f"class_synonyms of {classname!r} has an empty name, or one that another "
                        f"class has too: {others}."
                    )
                known.add(other)
                named.append((other, rows[classname]))
        return named
