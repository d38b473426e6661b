"""Requests about images and groups, and the digest by which their answers are found again.

Letters: N training images, R rows of a table (images or groups), n images of one class.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from latteclip.captions.pictures import Layout
from latteclip.core import tables
from latteclip.core.class_templates import PLACE, fill
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest as joint_digest

DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits
# Added to the prompt of a second attempt, after an answer that was empty or cut.
RETRY_PROMPT = "Answer with one short sentence."
HASHED_WHOLE = 64 * 2**20  # files up to this size are hashed whole
SAMPLES, SAMPLE = 256, 64 * 2**10  # of larger ones: this many blocks of this many bytes
GROUP_SIZE = 4


@dataclass(frozen=True)
class Identity:
    """Everything that decides an answer, besides the images and the prompt."""

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

    kind: str  # likelihood: of each text as the answer; multiple_choice: of each as the first token
    texts: tuple[str, ...]
    prompts: tuple[str, ...] = ()  # of multiple_choice: the prompt, its options in each order


@dataclass(frozen=True)
class Request:
    """Pictures and a prompt about them."""

    key: int  # the row
    pictures: Sequence[Image.Image | str]  # RGB, or data URLs for a server
    prompt: str
    choices: Choices | None = None  # None: an answer in words is wanted


def choices_of(request: Request) -> Choices:
    """Return the choices of a request that has some."""
    if request.choices is None:
        raise ValueError("a request without choices has no scores")
    return request.choices


def messages(pictures: Sequence[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """Return one turn of a user: the pictures, then the text."""
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}]


# --- digests -------------------------------------------------------------------------------------


def digest(
    image_digests: bytes,
    n_images: int,
    prompt: str,
    identity: Identity,
    choices: Choices | None = None,
) -> str:
    """Return the identity of a request: DIGEST_LENGTH hexadecimal digits.

    Args:
        image_digests: see `digest_of_images`.
        n_images: how many images the request shows.
        prompt: of this attempt.
        identity: the rest.
        choices: whose log-probabilities are wanted, if any.
    """
    shared = _shared_part(n_images, prompt, identity, choices)
    return joint_digest(image_digests, shared)[:DIGEST_LENGTH]


@functools.lru_cache(maxsize=4096)
def _shared_part(n_images: int, prompt: str, identity: Identity, choices: Choices | None) -> bytes:
    """Return what many requests have in common, in one way of writing it."""
    asked = messages([{"type": "image"}] * n_images, prompt)
    wanted = None if choices is None else asdict(choices)
    return json.dumps([asked, asdict(identity), wanted], sort_keys=True).encode()


def digest_of_images(contents: Sequence[bytes]) -> bytes:
    """Return 32 bytes that stand for the bytes of image files, in their order."""
    parts = [hashlib.sha256(content).digest() for content in contents]
    return parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()


def fingerprint(model: str) -> str:
    """Return the name of a model on the Hugging Face hub, or a digest of a folder's files.

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


# --- shards --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A part of the rows: those whose id hashes to `number`, of `of` parts; counted from 1."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "2/4"."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UserError(f"Shard {text!r} is not of the form 2/4.")
        return cls(int(number), int(of))

    @property
    def name(self) -> str:
        """Return the shard as a part of a file's name."""
        return f"{self.number}-of-{self.of}"

    def has(self, row_id: str) -> bool:
        """Return whether a row belongs to this shard, whatever other rows there are."""
        return shard_of(row_id, self.of) == self.number


ALL_ROWS = Shard()


def shard_of(row_id: str, of: int) -> int:
    """Return the shard of a row, from 1 to `of`."""
    return 1 + int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8]) % of


# --- questions of a table ------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupSettings:
    """How groups are drawn and laid out."""

    seed: int
    canvas: int  # side of the square picture, pixels
    gap: int  # between its cells, pixels
    layout: str = "grid"  # or multi_image: the four as separate pictures
    groups_per_class: int | None = None  # null: one for every image

    def picture_layout(self, single: Layout) -> Layout:
        """Return how a group is shown, where `single` is how one image is shown."""
        if self.layout == "grid":
            return Layout("grid", self.canvas, self.gap, square=single.square)
        return replace(single, kind=self.layout)


@dataclass(frozen=True)
class Questions:
    """The R rows that a table will have: prompts about images.

    Columns, not one object per row: a million rows must fit.
    """

    ids: Sequence[str]  # R
    members: np.ndarray  # int [R, images of a request], indices into `image_ids`
    image_ids: pa.ChunkedArray  # N
    paths: pa.ChunkedArray  # N
    sizes: np.ndarray  # int [N, 2], width and height in pixels
    labels: Sequence[int] | None  # R, of groups
    prompts: Callable[[int], str]  # of a row
    layout: Layout

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_images(self) -> int:
        """Return how many images each request shows."""
        return int(self.members.shape[1])

    def paths_of(self, row: int) -> list[str]:
        """Return the paths of the images of a row."""
        return [self.paths[int(i)].as_py() for i in self.members[row]]

    @property
    def n_pictures(self) -> int:
        """Return the number of pictures of each request."""
        return self.n_images if self.layout.kind == "multi_image" else 1

    @property
    def max_pixels(self) -> int:
        """Return the most pixels that the pictures of a request have; at least 1."""
        layout = self.layout
        if layout.square is not None:
            each = layout.square**2
        elif layout.kind == "grid":
            each = layout.canvas**2
        else:
            sides = self.sizes.astype(np.float64)  # [N, 2]
            if layout.max_side is not None:
                sides *= np.minimum(1, layout.max_side / sides.max(axis=1, keepdims=True))
            each = math.ceil(float(sides.prod(axis=1).max(initial=1)))
        return each * self.n_pictures


def image_questions(
    images_path: str,
    pseudo_labels_path: str | None,
    prompt: str,
    shard: Shard,
    layout: Layout,
) -> Questions:
    """Return one question about each image of a shard that is not in the test split.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: needed where the prompt has a place for the pseudo-label.
        prompt: the question.
        shard: which images.
        layout: of an image by itself.

    Raises:
        UserError: the pseudo-labels are needed and not given, or lack an image.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    rows = [i for i, name in enumerate(image_ids) if shard.has(name)]
    return Questions(
        ids=[image_ids[i] for i in rows],
        members=np.array(rows, np.int64).reshape(-1, 1),
        image_ids=table["image_id"],
        paths=table["path"],
        sizes=_sizes(table),
        labels=None,
        prompts=_prompts(prompt, classnames, pseudo_labels_path, image_ids, rows),
        layout=layout,
    )


def group_questions(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupSettings,
    shard: Shard,
    single: Layout,
) -> Questions:
    """Return one question about each group of a shard; see `image_questions`."""
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    labels = _pseudo_labels(pseudo_labels_path, image_ids)
    # Drawn over the whole dataset in every shard, so that shards agree.
    drawn = draw_groups(image_ids, labels, groups.seed, groups.groups_per_class)
    rows = [i for i in drawn if shard.has(image_ids[i])]
    return Questions(
        ids=[image_ids[i] for i in rows],
        members=np.array([drawn[i] for i in rows], np.int64).reshape(-1, GROUP_SIZE),
        image_ids=table["image_id"],
        paths=table["path"],
        sizes=_sizes(table),
        labels=[labels[i] for i in rows],
        prompts=_prompts(prompt, classnames, pseudo_labels_path, image_ids, rows),
        layout=groups.picture_layout(single),
    )


def _sizes(table: pa.Table) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in ("width", "height")], axis=1)


def _prompts(
    prompt: str,
    classnames: Sequence[str],
    pseudo_labels_path: str | None,
    image_ids: Sequence[str],
    rows: Sequence[int],
) -> Callable[[int], str]:
    """Return the prompt of a row, its place for the pseudo-label filled."""
    if PLACE not in prompt:
        return lambda row: prompt
    if pseudo_labels_path is None:
        raise UserError(f"Prompt {prompt!r} names the pseudo-label; give --pseudo-labels.")
    labels = _pseudo_labels(pseudo_labels_path, image_ids)
    filled = [fill(prompt, classname) for classname in classnames]
    return lambda row: filled[labels[rows[row]]]


def _pseudo_labels(path: str, image_ids: Sequence[str]) -> list[int]:
    return tables.lookup(path, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids)


# --- groups --------------------------------------------------------------------------------------


def draw_groups(
    image_ids: Sequence[str], labels: Sequence[int], seed: int, per_class: int | None = None
) -> dict[int, list[int]]:
    """Draw four images of its class for every image, at random (LatteCLIP, section 3.2).

    There are four random circular orders of the class's n images. Each of the four drawn images is
    the next one in one of these orders. So every image is drawn about four times, and an image that
    is added to the class later changes the few groups in which it takes its place, and no others.

    Args:
        image_ids: of the N images.
        labels: their pseudo-labels.
        seed: another one gives other groups.
        per_class: draw for this many images of each class, chosen at random, instead of for all.

    Returns:
        For each image that has a group, its index and the indices of its four members, in order.
        They are different where the class has four images, and drawn with replacement where not.
    """
    keys = np.array([_keys(seed, image_id) for image_id in image_ids])  # [N, 5]
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    groups: dict[int, list[int]] = {}
    for indices in of_class.values():
        members = np.array(indices)
        chosen = np.argsort(keys[members, GROUP_SIZE], kind="stable")[:per_class]
        drawn = _of_class(keys[members, :GROUP_SIZE])
        groups |= {indices[i]: members[drawn[i]].tolist() for i in chosen}
    return dict(sorted(groups.items()))


def _keys(seed: int, image_id: str) -> list[int]:
    """Return five random numbers that depend on nothing but the arguments."""
    state = hashlib.sha256(f"{seed} {image_id}".encode()).digest()
    return [int.from_bytes(state[6 * turn : 6 * turn + 6]) for turn in range(GROUP_SIZE + 1)]


def _of_class(keys: np.ndarray) -> np.ndarray:
    """Return four images for each of the n images of a class: int [n, 4].

    Args:
        keys: int [n, 4]; column k sorts the images into the k-th order.
    """
    n = len(keys)
    if n < GROUP_SIZE:
        return keys % n
    orders = np.argsort(keys, axis=0, kind="stable")  # [n, 4]: the image at each place
    places = np.argsort(orders, axis=0)  # [n, 4]: the place of each image
    groups = np.empty((n, GROUP_SIZE), np.int64)
    for turn in range(GROUP_SIZE):
        step = np.ones(n, np.int64)
        while True:
            drawn = orders[(places[:, turn] + step) % n, turn]
            taken = (groups[:, :turn] == drawn[:, None]).any(axis=1)
            if not taken.any():
                break
            step += taken
        groups[:, turn] = drawn
    return groups
