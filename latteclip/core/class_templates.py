"""Class names and the templates that make texts of them.

Letters: C classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from latteclip.core.errors import UserError, suggestion

PLACE = "{}"


WRITTEN = "written_names"  # in the metadata of files


def clean_classname(name: str, replace: Mapping[str, str]) -> str:
    """Return a class name as CLIP reads it: in lower case, with replacements and single spaces."""
    for old, new in replace.items():
        name = name.replace(old, new)
    return " ".join(name.lower().split())


def clean_classnames(names: Sequence[str], replace: Mapping[str, str]) -> list[str]:
    """Clean C class names.

    Raises:
        UserError: two names become equal, one becomes empty, or there are fewer than two.
    """
    cleaned = [clean_classname(name, replace) for name in names]
    first: dict[str, str] = {}
    for name, clean in zip(names, cleaned, strict=True):
        if not clean:
            raise UserError(f"Class name {name!r} is empty after clean-up; rename the class.")
        if clean in first:
            raise UserError(
                f"Class names {first[clean]!r} and {name!r} are both {clean!r} after clean-up; "
                "rename one of the classes."
            )
        first[clean] = name
    if len(cleaned) < 2:
        raise UserError(f"A dataset needs at least two classes, found {list(names)}.")
    return cleaned


def fill(template: str, classname: str) -> str:
    """Return a template or prompt with a class name in place of {}, if it has that."""
    return template.replace(PLACE, classname)


def class_texts(template: str, classnames: Sequence[str]) -> list[str]:
    """Return T(c) for every class: the C class descriptions (LatteCLIP, section 3.1)."""
    if PLACE not in template:
        raise UserError(f"Class template {template!r} has no {PLACE} for the class name.")
    return [fill(template, name) for name in classnames]


@dataclass(frozen=True)
class ClassTemplates:
    """Templates, each with {} for a name, and synonyms of the class names.

    Class names are as CLIP reads them, in lower case. Tables show them as the dataset writes them.
    """

    templates: list[str]
    synonyms: dict[str, list[str]] = field(default_factory=dict)  # by class name
    written: dict[str, str] = field(default_factory=dict)  # by class name, where they differ

    @classmethod
    def of(
        cls, template: str | Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
    ) -> Self:
        """Build them from a dataset's `template` and `class_synonyms`.

        Raises:
            UserError: there is no template, one has no place for the name, or one or a synonym is
                empty or given twice.
        """
        templates = [template] if isinstance(template, str) else list(template)
        _check_templates(templates)
        cleaned: dict[str, list[str]] = {}
        for spelt, others in (synonyms or {}).items():
            name = clean_classname(str(spelt), {})
            if name in cleaned:
                raise UserError(
                    f"class_synonyms has two spellings of the class {name!r}; keep one of them."
                )
            cleaned[name] = [clean_classname(other, {}) for other in others]
        _check_synonyms(cleaned)
        return cls(templates, cleaned)

    @classmethod
    def described_by(cls, metadata: Mapping[str, Any]) -> Self:
        """Build them from the metadata of a file (`described`).

        Raises:
            UserError: the metadata lack them.
        """
        templates = metadata.get("templates", metadata.get("template"))
        synonyms = metadata.get("class_synonyms", {})
        if not (_are_texts(templates) or isinstance(templates, str)):
            raise UserError(f"A file says that the template of its classes is {templates!r}.")
        if not isinstance(synonyms, dict) or not all(map(_are_texts, synonyms.values())):
            raise UserError(f"A file says that the class_synonyms of its classes are {synonyms!r}.")
        written = metadata.get(WRITTEN, {})
        if not isinstance(written, dict) or not _are_texts([*written.values()]):
            raise UserError(f"A file says that the {WRITTEN} of its classes are {written!r}.")
        return replace(cls.of(templates, synonyms), written=written)

    @property
    def template(self) -> str:
        """Return the first template, that of the class descriptions T(c)."""
        return self.templates[0]

    @property
    def described(self) -> dict[str, Any]:
        """Return them as metadata: the first template, and the rest if there is any."""
        described: dict[str, Any] = {"template": self.template}
        if len(self.templates) > 1:
            described["templates"] = self.templates
        if self.synonyms:
            described["class_synonyms"] = self.synonyms
        if self.written:
            described[WRITTEN] = self.written
        return described

    def as_written(self, classnames: Sequence[str]) -> list[str]:
        """Return class names as the dataset writes them."""
        return [self.written.get(name, name) for name in classnames]

    def names(self, classnames: Sequence[str]) -> list[tuple[str, int]]:
        """Return every name with the row of its class: the C class names, then the synonyms.

        Raises:
            UserError: a synonym is of no class, or is itself the name of a class.
        """
        rows = {clean_classname(name, {}): row for row, name in enumerate(classnames)}
        named = [(name, row) for row, name in enumerate(classnames)]
        for classname, others in self.synonyms.items():
            if classname not in rows:
                raise UserError(
                    f"class_synonyms has names for {classname!r}, which is not a class of the "
                    f"dataset; {suggestion(classname, rows)}"
                )
            for other in others:
                if other in rows:
                    raise UserError(
                        f"class_synonyms calls the class {classname!r} also {other!r}, which is "
                        "the name of a class itself; remove it."
                    )
                named.append((other, rows[classname]))
        return named


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _check_templates(templates: list[str]) -> None:
    if not templates:
        raise UserError(f"template is an empty list; give at least one with {PLACE} in it.")
    for template, times in Counter(templates).items():
        if PLACE not in template:
            raise UserError(f"template {template!r} has no {PLACE} for the class name.")
        if times > 1:
            raise UserError(f"template {template!r} is given {times} times; keep one of them.")


def _check_synonyms(synonyms: Mapping[str, Sequence[str]]) -> None:
    for classname, others in synonyms.items():
        if not all(others) or not others:
            raise UserError(f"class_synonyms of {classname!r} lack a name; add it or remove them.")
    for other, times in Counter(name for others in synonyms.values() for name in others).items():
        if times > 1:
            raise UserError(f"class_synonyms has {other!r} {times} times; keep one of them.")
