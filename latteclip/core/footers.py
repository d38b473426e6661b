"""The footer of a Parquet file with a checksum of its own.

Parquet has checksums of pages only; of the footer, which holds the schema, the metadata and the
number of rows, it has none. This one stands in the bytes before the footer, where no reader looks:
all places in the file are counted from its beginning.
"""

import hashlib
from pathlib import Path
from typing import BinaryIO

MARK = b"sha256 of footer"
TAIL = 8  # bytes: the footer's length and PAR1
CHECK = len(MARK) + hashlib.sha256().digest_size


def sign(path: str | Path) -> None:
    """Put the checksum into a file that was just written."""
    with Path(path).open("r+b") as file:
        start, footer = _footer(file)
        file.seek(start)
        file.write(MARK + hashlib.sha256(footer).digest() + footer)


def is_intact(path: str | Path) -> bool:
    """Whether the footer is the one that was written, or bears no checksum.

    The latter holds for files of other programs, and for what is not Parquet at all.
    """
    with Path(path).open("rb") as file:
        start, footer = _footer(file)
        if start < CHECK:
            return True
        file.seek(start - CHECK)
        mark, checksum = file.read(len(MARK)), file.read(CHECK - len(MARK))
        return mark != MARK or checksum == hashlib.sha256(footer).digest()


def _footer(file: BinaryIO) -> tuple[int, bytes]:
    """Where the footer begins, and it with the file's tail; 0 and nothing where there is none."""
    size = file.seek(0, 2)
    file.seek(max(0, size - TAIL))
    start = size - TAIL - int.from_bytes(file.read(TAIL)[:4], "little")
    if start < 0:
        return 0, b""
    file.seek(start)
    return start, file.read()
