"""Class names, class templates and prompts: plain text in, plain text out."""

from collections.abc import Mapping, Sequence

from latteclip.core.errors import UserError

PLACE = "{}"


def clean_classname(name: str, replace: Mapping[str, str]) -> str:
    """A class name as CLIP reads it: lower case, replacements made, single spaces."""
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
    """Put a class name into a template or prompt; one without "{}" is returned as it is."""
    return template.replace(PLACE, classname)


def class_texts(template: str, classnames: Sequence[str]) -> list[str]:
    """T(c) for every class: the C class descriptions (LatteCLIP, section 3.1)."""
    if PLACE not in template:
        raise UserError(f"Class template {template!r} has no {PLACE} for the class name.")
    return [fill(template, name) for name in classnames]
