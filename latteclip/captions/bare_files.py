"""Image files without what is not their pixels: no EXIF, position, comment, preview or trailer.

Nothing is decoded, so the picture stays the same to the last bit. Colour profiles go too, which no
engine applies.
"""

import re

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
SCAN, END = 0xDA, 0xD9
JFIF, ADOBE = 0xE0, 0xEE  # the segments that say how colours are coded
NEEDED = frozenset({*range(0xC0, 0xD0), SCAN, *range(0xDB, 0xE0)})  # tables, frames, scans
TOLD = frozenset({*range(0xE0, 0xF0), 0xFE})  # whatever a camera or a program adds; comments
CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Ends the data of a scan: any marker but a restart, and but the zero that marks no marker.
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def bare(content: bytes) -> bytes | None:
    """An RGB JPEG or PNG file without metadata; None where it is neither or is not whole."""
    try:
        if content.startswith(JPEG):
            return _bare_jpeg(content)
        return _bare_png(content) if content.startswith(PNG) else None
    except IndexError:  # it ends too early
        return None


def _bare_jpeg(content: bytes) -> bytes | None:
    kept, at = [JPEG], len(JPEG)
    while True:
        if content[at] != 0xFF:
            return None
        while content[at + 1] == 0xFF:  # markers may be filled up in front
            at += 1
        marker = content[at + 1]
        if marker == END:
            return b"".join([*kept, content[at : at + 2]])
        if marker not in NEEDED | TOLD:
            return None
        end = at + 2 + (content[at + 2] << 8 | content[at + 3])
        kept.append(_needed(marker, content[at:end]))
        if marker == SCAN:
            after = _AFTER_SCAN.search(content, end)
            if after is None:
                return None
            kept.append(content[end : after.start()])
            end = after.start()
        at = end


def _needed(marker: int, segment: bytes) -> bytes:
    """What a decoder needs of a segment."""
    if marker in NEEDED:
        return segment
    if marker == JFIF and segment[4:9] == b"JFIF\0" and len(segment) >= 18:
        return b"\xff\xe0\0\x10" + segment[4:16] + b"\0\0"  # and no preview behind it
    if marker == ADOBE and segment[4:9] == b"Adobe" and len(segment) >= 16:
        return b"\xff\xee\0\x0e" + segment[4:16]
    return b""


def _bare_png(content: bytes) -> bytes:
    kept, at = [PNG], len(PNG)
    while True:
        end = at + 12 + int.from_bytes(content[at : at + 4])
        kind = content[at + 4 : at + 8]
        content[end - 1]  # the chunk is whole
        if kind in CHUNKS:
            kept.append(content[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end
