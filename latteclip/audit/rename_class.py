"""`latteclip rename-class`: a person's answers follow a class that has a new name."""

import logging
from pathlib import Path

from latteclip.audit.sampling import audit_files
from latteclip.config.keys import SplitSection
from latteclip.core import tables
from latteclip.core.class_templates import clean_classname
from latteclip.core.errors import UserError, suggestion
from latteclip.core.tables import IndexMetadata
from latteclip.labels import answers

log = logging.getLogger(__name__)


def rename_class(results: str, old: str, new: str, /) -> None:
    """Give a class its new name in the answers of `teach` and `audit`.

    Write the new name into classes.txt, or rename the folder, and run the workflow again. If NEW is
    a class already, the two classes become one.

    Args:
        old: the name in the answers
        new: the name that the class has now
    """
    folder = Path(results)
    audits = [audit_files(folder, split)[1] for split in ("test", "train")]
    files = [path for path in (folder / "answers.json", *audits) if path.exists()]
    metadata = tables.read_metadata(folder / "images.parquet", IndexMetadata)
    clean = {written: name for name, written in metadata.written_names.items()}
    replaced = SplitSection().classname_replace
    old, new = (clean.get(name) or clean_classname(name, replaced) for name in (old, new))
    known = {name for path in files for name in answers.read_document(path).classes}
    if old not in known:
        raise UserError(
            f"No answer of {folder} knows the class {old!r}; {suggestion(old, known)}"
        )
    for path in files:
        n = answers.rename_class(path, old, new)
        log.info("%s: %d answers name %r now, and no longer %r.", path, n, new, old)
