"""What is asked of a captioner, and the digest by which an answer to it is found again."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from latteclip.core.digest import digest as joint_digest

DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits
# Asked in a second attempt, after an answer that was empty or cut.
AGAIN = "Answer with one short sentence."
HASHED_WHOLE = 64 * 2**20  # files up to this size are hashed whole
SAMPLES, SAMPLE = 256, 64 * 2**10  # of larger ones: this many blocks of this many bytes


@dataclass(frozen=True)
class Layout:
    """How the images of a request become the pictures that the model sees."""

    kind: str = "single"  # single, grid or multi_image
    canvas: int = 0  # of a grid: side of the square picture, pixels
    gap: int = 0  # between its cells, pixels
    max_side: int | None = None  # a larger image is scaled down to this many pixels
    square: int | None = None  # then each picture is scaled to a square of this side, pixels


@dataclass(frozen=True)
class Identity:
    """What decides an answer, besides the images and the prompt."""

    model: str  # see `fingerprint`
    revision: str | None
    dtype: str
    quantization: str | None
    max_new_tokens: int
    layout: Layout
    temperature: float = 0.0
    special_tokens: str | None = None  # see `processors.special_tokens`


@dataclass(frozen=True)
class Choices:
    """Texts whose log-probabilities are wanted, in place of an answer in words."""

    kind: str  # likelihood: of each text as the answer; letters: of each as the first token
    texts: tuple[str, ...]
    prompts: tuple[str, ...] = ()  # of letters: the prompt, its options in each order


@dataclass(frozen=True)
class Request:
    """Pictures and what is asked about them; `key` is the asker's."""

    key: int
    pictures: Sequence[Image.Image | str]  # RGB, or data URLs for a server
    prompt: str
    choices: Choices | None = None  # None: an answer in words is wanted


def alone(max_side: int | None, square: int | None) -> Layout:
    """The layout of an image by itself; one that becomes a square is not scaled down before."""
    return Layout(max_side=None if square else max_side, square=square)


def choices_of(request: Request) -> Choices:
    """The choices of a request that has some."""
    if request.choices is None:
        raise ValueError("a request without choices has no scores")
    return request.choices


def prompt_of(prompt: str, attempt: int) -> str:
    """The prompt of the first attempt, or of the second."""
    return prompt if attempt == 1 else f"{prompt} {AGAIN}"


def messages(pictures: Sequence[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """One turn of a user: the pictures, then the text."""
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}]


def digest(
    image_digests: bytes,
    n_images: int,
    prompt: str,
    identity: Identity,
    choices: Choices | None = None,
) -> str:
    """The identity of a request: DIGEST_LENGTH hexadecimal digits.

    Args:
        image_digests: see `digest_of_images`.
        n_images: how many images the request shows.
        prompt: of this attempt.
        identity: the rest.
        choices: whose log-probabilities are wanted, if any.
    """
    about = _about(n_images, prompt, identity, choices)
    return joint_digest(image_digests, about)[:DIGEST_LENGTH]


@functools.lru_cache(maxsize=4096)
def _about(n_images: int, prompt: str, identity: Identity, choices: Choices | None) -> bytes:
    """What many requests have in common, in one way of writing it."""
    asked = messages([{"type": "image"}] * n_images, prompt)
    # Without choices the text is that of before there were any: captions kept since are found.
    chosen = [] if choices is None else [asdict(choices)]
    return json.dumps([asked, _values(identity), *chosen], sort_keys=True).encode()


def _values(identity: Identity) -> dict[str, Any]:
    """Return all of an identity but a square and special tokens that it does not have."""
    values = asdict(identity)
    for part, name in ((values["layout"], "square"), (values, "special_tokens")):
        if part[name] is None:
            del part[name]
    return values


def digest_of_images(contents: Sequence[bytes]) -> bytes:
    """32 bytes that stand for the bytes of the image files, in their order."""
    parts = [hashlib.sha256(content).digest() for content in contents]
    return parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()


def fingerprint(model: str) -> str:
    """The name of a model on the Hugging Face hub, or what stands for the files of a folder.

    Files of at most 64 MiB count with every byte, larger ones with their size and with blocks
    spread evenly over them, which no training leaves unchanged.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    parts: list[str | bytes] = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        parts += [path.name, _sampled(path)]
    return f"sha256:{joint_digest(*parts)}"


def _sampled(path: Path) -> bytes:
    size = path.stat().st_size
    if size <= HASHED_WHOLE:
        return hashlib.sha256(path.read_bytes()).digest()
    state = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek((size - SAMPLE) * number // (SAMPLES - 1))
            state.update(file.read(SAMPLE))
    return state.digest()
