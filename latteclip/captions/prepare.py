"""Reading, identifying and decoding images ahead of the engine, in worker processes.

Imports neither torch nor an engine: a worker starts in a fraction of a second and stays small.
"""

import base64
import io
from collections.abc import Container, Sequence
from dataclasses import dataclass

from PIL import Image

from latteclip.captions import request
from latteclip.captions.bare_files import PNG, bare
from latteclip.captions.pictures import data_url, lay_out
from latteclip.captions.request import Choices, Identity, Layout
from latteclip.core.errors import UserError
from latteclip.data import members
from latteclip.data.images import is_plain, open_rgb
from latteclip.data.workers import Workers

CHUNKS = 8, 64  # requests that a worker prepares at a time: at least, at most
PIXELS = 8 * 1344**2  # and no more of them than show so many pixels
AHEAD = 8  # chunks that are ready or wait for a worker, besides those in work


@dataclass(frozen=True)
class Task:
    """A request before its images are read."""

    key: int
    paths: Sequence[str]
    prompt: str  # of this attempt
    choices: Choices | None = None  # as of the request


@dataclass(frozen=True)
class Prepared:
    """A request whose images are read; without pictures where its answer is held already."""

    task: Task
    image_digests: bytes
    pictures: Sequence[Image.Image | str] | None


@dataclass(frozen=True)
class Preparer:
    """What a worker does with a task."""

    identity: Identity
    as_urls: bool  # encode pictures for a server
    held: Container[str]  # digests of requests whose answers are held

    def __call__(self, task: Task) -> Prepared:
        """Read the images of a task, and decode them unless its answer is held."""
        contents = [read_image(path) for path in task.paths]
        image_digests = request.digest_of_images(contents)
        digest = request.digest(
            image_digests, len(contents), task.prompt, self.identity, task.choices
        )
        if digest in self.held:
            return Prepared(task, image_digests, None)
        return Prepared(task, image_digests, self._pictures(task.paths, contents))

    def _pictures(
        self, paths: Sequence[str], contents: Sequence[bytes]
    ) -> Sequence[Image.Image | str]:
        layout = self.identity.layout
        if self.as_urls and layout.kind != "grid" and layout.square is None:
            return [_url(*file, layout.max_side) for file in zip(paths, contents, strict=True)]
        pictures = show(layout, paths, contents)
        return [data_url(picture) for picture in pictures] if self.as_urls else pictures


def show(layout: Layout, paths: Sequence[str], contents: Sequence[bytes]) -> list[Image.Image]:
    """The RGB pictures that the model sees of the images at `paths`."""
    pictures = [
        open_rgb(path, content=io.BytesIO(content), max_side=layout.max_side)
        for path, content in zip(paths, contents, strict=True)
    ]
    return lay_out(pictures, layout)


def workers(preparer: Preparer, n: int, most_pixels: int) -> Workers[Task, Prepared]:
    """Processes that prepare tasks in order.

    Args:
        preparer: what they do with a task.
        n: how many processes.
        most_pixels: that a request shows. The fewer, the more go to a worker at a time, for each
            time costs this process as much as a small picture does.
    """
    least, most = CHUNKS
    return Workers(
        preparer,
        n,
        chunk=max(least, min(most, PIXELS // most_pixels)),
        ahead=AHEAD,
        name=lambda task: task.paths[0],
        threads_key="threads.caption",
    )


def read_image(path: str) -> bytes:
    """The bytes of an image."""
    try:
        return members.read(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Image {path} cannot be read ({error}); put it back, or index the images anew "
            "(snakemake -R index_images)."
        ) from None


def _url(path: str, content: bytes, max_side: int | None) -> str:
    """An image file as a data URL: its own pixels, where a server decodes them to the same picture.

    Nothing else of the file is told: no EXIF, no position, no preview.
    """
    try:
        plain = is_plain(io.BytesIO(content), max_side)
    except Exception:  # decoders fail in many ways on broken files
        plain = False  # for `open_rgb` to say
    pixels = bare(content) if plain else None
    if pixels is not None:
        kind = "png" if pixels.startswith(PNG) else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(pixels).decode()}"
    return data_url(open_rgb(path, content=io.BytesIO(content), max_side=max_side))
