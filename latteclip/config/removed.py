"""Names that were removed, and what to do instead: this release refuses them with that step.

Nothing else mentions them. The next release deletes this file.
"""

import re

# Keys of the configuration, by their path without the names of datasets, methods and labellers.
KEYS: dict[str, str] = {}
# Options, formats and commands of `latteclip`, as they are typed.
OPTIONS: dict[str, str] = {}


def removed_key(path: list[str]) -> str | None:
    """Return what to do instead of a key, or of the section that it is in."""
    joined = f".{'.'.join(path)}."
    return next((step for key, step in KEYS.items() if f".{key}." in joined), None)


def removed_option(message: str) -> str | None:
    """Return what to do instead of a removed word that argparse does not accept."""
    words = set(re.findall(r"[\w-]+", message))
    return next(
        (f"{name} was removed: {OPTIONS[name]}" for name in OPTIONS if name in words), None
    )
