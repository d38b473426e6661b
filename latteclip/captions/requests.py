"""Questions about images and groups, and the digests by which their answers are found again.

Letters: N training images, R rows of a table (images or groups).
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from latteclip.captions.groups import GROUP_SIZE, draw_groups
from latteclip.captions.pictures import Layout
from latteclip.config import hub_names
from latteclip.core import tables
from latteclip.core.class_templates import PLACE, fill
from latteclip.core.errors import UserError
from latteclip.core.hashing import digest as joint_digest

DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits
HASHED_WHOLE = 64 * 2**20  # files up to this size are hashed whole
SAMPLES, SAMPLE = 256, 64 * 2**10  # of larger ones: this many blocks of this many bytes
SPECIAL_TOKENS = "added unless the prompt begins with them"  # the rule of all engines
# Parts of a tokenizer.json, and settings of a tokenizer_config.json, that add special tokens.
ADDING = ("SpecialToken", "BertProcessing", "RobertaProcessing")
ADDS = ("add_bos_token", "add_eos_token")


@dataclass(frozen=True)
class Choices:
    """Texts whose log-probabilities are wanted, in place of an answer in words."""

    kind: str  # likelihood: of each text as the answer; multiple_choice: of each as the first token
    texts: tuple[str, ...]
    prompts: tuple[str, ...] = ()  # of multiple_choice: the prompt, its options in each order

    @property
    def by_letters(self) -> bool:
        return self.kind == "multiple_choice"


@dataclass(frozen=True)
class Request:
    """Pictures and a prompt about them."""

    key: int  # the row
    pictures: Sequence[Image.Image | str]  # RGB, or data URLs for a server
    prompt: str  # of this attempt
    choices: Choices | None = None  # None: an answer in words is wanted
    paths: Sequence[str] = ()  # of the images, until their pictures are made
    digest: str = ""  # by which its answer is cached

    @property
    def wanted(self) -> Choices:
        assert self.choices is not None
        return self.choices


@dataclass(frozen=True)
class Answer:
    """An answer to a request, as the model wrote it."""

    text: str
    finish_reason: str  # "stop", "length" where max_new_tokens cut it, or "error"
    n_tokens: int | None
    error: str | None = None  # why there is no text; such an answer is not cached
    n_read: int | None = None  # tokens of the request, pictures included
    engine: str = ""  # that gave it; of cached answers
    date: str = ""  # on which it did, UTC
    digest: str | None = None  # of the request; None where nothing was asked


def failed(error: str) -> Answer:
    """Return the answer to a request that could not be answered."""
    return Answer("", "error", None, error)


def messages(pictures: Sequence[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """Return one turn of a user: the pictures, then the text."""
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}]


# --- digests -------------------------------------------------------------------------------------


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
    special_tokens: str | None = None  # see `special_tokens`


def digest(
    contents: Sequence[bytes], prompt: str, identity: Identity, choices: Choices | None = None
) -> str:
    """Return DIGEST_LENGTH hexadecimal digits for a request about image files of these bytes."""
    parts = [hashlib.sha256(content).digest() for content in contents]
    images = parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()
    return joint_digest(images, _shared(len(contents), prompt, identity, choices))[:DIGEST_LENGTH]


@functools.lru_cache(maxsize=4096)
def _shared(n_images: int, prompt: str, identity: Identity, choices: Choices | None) -> bytes:
    asked = messages([{"type": "image"}] * n_images, prompt)
    wanted = None if choices is None else asdict(choices)
    return json.dumps([asked, asdict(identity), wanted], sort_keys=True).encode()


def fingerprint(model: str) -> str:
    """Return the name of a model on the Hugging Face hub, or a digest of a folder's files.

    Of large files, their size and blocks spread evenly over them count. No training leaves these
    unchanged.
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


def special_tokens(model: str, revision: str | None) -> str | None:
    """Return the rule for special tokens, or None where the tokenizer's files add none."""
    from huggingface_hub import hf_hub_download

    def values_of(name: str) -> Any:
        is_folder = hub_names.is_folder(model)
        path = Path(model, name) if is_folder else hf_hub_download(model, name, revision=revision)
        return json.loads(Path(path).read_bytes())

    try:
        adding = json.dumps(values_of("tokenizer.json")["post_processor"])
        settings = values_of("tokenizer_config.json")
        adds = any(part in adding for part in ADDING) or any(settings.get(name) for name in ADDS)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        adds = True
    return SPECIAL_TOKENS if adds else None


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
        """Return the layout of a group, where `single` is that of one image."""
        if self.layout == "grid":
            return Layout("grid", self.canvas, self.gap, square=single.square)
        return replace(single, kind=self.layout)


@dataclass(frozen=True)
class Questions:
    """The R rows that a table will have, in columns: a million rows must fit."""

    ids: Sequence[str]  # R
    members: np.ndarray  # int [R, images of a request], indices into `image_ids`
    image_ids: pa.ChunkedArray  # N
    paths: pa.ChunkedArray  # N
    classnames: Sequence[str]
    labels: Sequence[int] | None  # R, of groups
    prompts: Callable[[int], str]  # of a row
    layout: Layout
    max_pixels: int  # of a picture

    def __len__(self) -> int:
        return len(self.ids)

    def paths_of(self, row: int) -> list[str]:
        return [self.paths[int(i)].as_py() for i in self.members[row]]

    @property
    def n_pictures(self) -> int:
        return int(self.members.shape[1]) if self.layout.kind == "multi_image" else 1


def questions_about(
    images_path: str,
    pseudo_labels_path: str | None,
    prompt: str,
    single: Layout,
    shard: str,
    groups: GroupSettings | None = None,
) -> Questions:
    """Return one question about each image, or each group, of a shard without the test split.

    `single` is the layout of an image by itself, and a shard is written as "2/4".
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    labels: list[int] = []
    if groups or PLACE in prompt:
        if pseudo_labels_path is None:
            raise UserError(f"Prompt {prompt!r} names the pseudo-label; give --pseudo-labels.")
        labels = tables.lookup(
            pseudo_labels_path, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids
        )
    candidates: Sequence[int] | dict[int, list[int]] = range(len(image_ids))
    if groups:  # drawn over the whole dataset in every shard, so that shards agree
        candidates = draw_groups(image_ids, labels, groups.seed, groups.groups_per_class)
    number, of = map(int, shard.split("/"))
    rows = [i for i in candidates if shard_of(image_ids[i], of) == number]
    members = [candidates[i] for i in rows]
    filled = [fill(prompt, classname) for classname in classnames]
    layout = groups.picture_layout(single) if groups else single
    return Questions(
        ids=[image_ids[i] for i in rows],
        members=np.array(members, np.int64).reshape(-1, GROUP_SIZE if groups else 1),
        image_ids=table["image_id"],
        paths=table["path"],
        classnames=classnames,
        labels=[labels[i] for i in rows] if groups else None,
        prompts=lambda row: filled[labels[rows[row]]] if labels else prompt,
        layout=layout,
        max_pixels=_max_pixels(layout, table),
    )


def shard_of(row_id: str, of: int) -> int:
    """Return the shard of a row, from 1 to `of`, which does not depend on other rows."""
    return 1 + int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8]) % of


def _max_pixels(layout: Layout, table: pa.Table) -> int:
    """Return a number of pixels that no picture exceeds; at least 1."""
    if side := layout.square or layout.canvas:
        return side**2
    sides = np.array([table["width"].to_numpy(), table["height"].to_numpy()], np.int64)
    return int(np.minimum(sides, layout.max_side or np.inf).prod(axis=0).max(initial=1))
