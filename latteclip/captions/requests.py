"""Requests to engines, their answers, and the digests by which answers are found again."""

import contextlib
import functools
import hashlib
import importlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from PIL import Image

from latteclip.captions.pictures import Layout
from latteclip.config import hub_names
from latteclip.config.keys import AUTO, CaptionerSection
from latteclip.core import hashing

DIGEST_LENGTH = 32  # hexadecimal digits: 128 bits
SPECIAL_TOKENS = "added unless the prompt begins with them"  # the rule of all engines
# Parts of a tokenizer.json, and settings of a tokenizer_config.json, that add special tokens.
ADDING = ("SpecialToken", "BertProcessing", "RobertaProcessing")
ADDS = ("add_bos_token", "add_eos_token")


LLAVA_NEXT = re.compile(r"llava-(v?1\.6|next)", re.IGNORECASE)
OVERVIEW = 336  # side of the square that LLaVA-1.6 sees of a whole image, pixels


def square(captioner: CaptionerSection) -> int | None:
    """Return the side of the square to which images are scaled, or None: they keep their shape."""
    if captioner.square_side == AUTO:
        return OVERVIEW if LLAVA_NEXT.search(captioner.model) else None
    return captioner.square_side


class CaptionerSettings(CaptionerSection):
    """The captioner, with what its stages ask of the engine."""

    loads_model: bool = True  # whether the engine does; a server is sent pictures as URLs
    reads_file: bool = False  # whether the user's files take the place of an engine

    @property
    def picture_layout(self) -> Layout:
        """The layout of one image, which is not scaled down before it becomes a square."""
        max_side = None if square(self) else self.max_image_side
        return Layout(max_side=max_side, square=square(self))


@dataclass(frozen=True)
class Choices:
    """Texts whose log-probabilities are wanted, in place of an answer in words."""

    # Likelihood: of each text as the answer; multiple_choice: of each as the first token;
    # decisions: of each as the option of a typed question.
    kind: str
    texts: tuple[str, ...]
    # One for each order of the options: prompts of multiple_choice, and of decisions the questions
    # in JSON.
    prompts: tuple[str, ...] = ()

    @property
    def by_letters(self) -> bool:
        return self.kind == "multiple_choice"


@dataclass(frozen=True)
class Request:
    """Pictures and a prompt about them."""

    key: int  # the row
    pictures: Sequence[Image.Image | str]  # RGB, or data URLs for a server
    prompt: str  # the prompt of this attempt
    choices: Choices | None = None  # None: an answer in words is wanted
    paths: Sequence[str] = ()  # paths of the images, until their pictures are made
    digest: str = ""  # key of its cached answer
    is_asked: bool = True  # False: an answer counts only if it is in the cache


@dataclass(frozen=True)
class Response:
    """An answer to a request, as the model wrote it."""

    text: str
    finish_reason: str  # "stop", "length" where max_new_tokens cut it, "scores" or "error"
    n_tokens: int | None
    error: str | None = None  # why there is no text; such an answer is not cached
    n_read: int | None = None  # tokens of the request, pictures included
    engine: str = ""  # name of the engine, of a cached answer
    date: str = ""  # date of a cached answer, UTC
    digest: str | None = None  # digest of the request; None where nothing was asked
    is_refused: bool = False  # whether a server finds fault with this request


def failed(error: str, *, is_refused: bool = False) -> Response:
    """Return the answer to a request that could not be answered."""
    return Response("", "error", None, error, is_refused=is_refused)


@dataclass(frozen=True)
class ChoiceScores:
    """Natural log-probabilities of the choices of a request, in their order.

    A row for each prompt: one of likelihoods, one for each order of the options.
    """

    log_probabilities: tuple[tuple[float, ...], ...]
    # In multiple choice, the most likely first token of each order; of decisions the choice.
    first: tuple[str, ...] = ()

    def as_answer(self, n_tokens: int | None, n_read: int | None = None) -> Response:
        """Return the scores as JSON; an error where one of them is not a number."""
        rows = self.log_probabilities
        if any(math.isnan(value) for row in rows for value in row):
            return failed(
                "the model's log-probabilities are not numbers; set captioner.dtype to bfloat16 or "
                "float32"
            )
        # JSON has no word for minus infinity.
        numbers = [list(map(_as_json_number, row)) for row in rows]
        text = json.dumps(
            {"log_probabilities": numbers, "first": self.first}, ensure_ascii=False
        )
        return Response(text, "scores", n_tokens, n_read=n_read)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of an answer."""
        values = json.loads(text)
        rows = []
        for row in values["log_probabilities"]:
            rows.append(tuple(-math.inf if value is None else value for value in row))
        return cls(tuple(rows), tuple(values["first"]))


def _as_json_number(value: float) -> float | None:
    """Return a number with six digits after the point, or None for an infinite one."""
    return round(value, 6) if math.isfinite(value) else None


def messages(pictures: Sequence[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """Return one turn of a user: the pictures, then the text."""
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}]


class Engine(Protocol):
    """A model that answers greedily, which `make` of its module returns."""

    version: str

    def answer(
        self, requests: Iterable[Request], would_wait: Callable[[], bool] | None = None
    ) -> Iterator[tuple[Request, Response]]:
        """Yield each request with its answer: words, or `ChoiceScores.as_answer` of its choices.

        Answers come in any order, and requests are taken as there is room for them. A request that
        cannot be answered gets an answer with an error. Where `would_wait` says that the
        next request is not there yet, work at hand comes first.
        """


def start(
    settings: CaptionerSettings, threads: int, pictures: int, *, scoring: bool = False
) -> Engine:
    """Start an engine whose requests show at most so many pictures, with choices if `scoring`."""
    engine: Engine = module_of(settings.engine).make(settings, threads, pictures, scoring)
    return engine


def module_of(engine: str) -> Any:
    """Import the module of an engine by its name: its edit reruns this engine's stages alone."""
    return importlib.import_module(f"latteclip.captions.engines.{engine}")


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
    contents: Sequence[bytes],
    prompt: str,
    identity: Identity,
    choices: Choices | None = None,
) -> str:
    """Return DIGEST_LENGTH hexadecimal digits for a request about image files of these bytes."""
    parts = [hashlib.sha256(content).digest() for content in contents]
    images = parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()
    return hashing.digest(images, _shared(len(contents), prompt, identity, choices))[
        :DIGEST_LENGTH
    ]


@functools.lru_cache(maxsize=4096)
def _shared(
    n_images: int, prompt: str, identity: Identity, choices: Choices | None
) -> bytes:
    asked = messages([{"type": "image"}] * n_images, prompt)
    wanted = None if choices is None else asdict(choices)
    return json.dumps([asked, asdict(identity), wanted], sort_keys=True).encode()


def fingerprint(settings: CaptionerSettings) -> str:
    """Return a digest of a folder's files, name and commit on the hub, or a server's name."""
    from huggingface_hub import hf_hub_download

    model = settings.model
    if Path(model).is_dir():
        return hashing.fingerprint(model)
    if settings.loads_model:
        with contextlib.suppress(OSError, ValueError):  # without the file no engine starts
            file = hf_hub_download(model, "config.json", revision=settings.revision)
            return f"{model}@{Path(file).parent.name}"
    return model


def special_tokens(model: str, revision: str | None) -> str | None:
    """Return the rule for special tokens, or None where the tokenizer's files add none."""
    from huggingface_hub import hf_hub_download

    def values_of(name: str) -> Any:
        is_folder = hub_names.is_folder(model)
        path = (
            Path(model, name)
            if is_folder
            else hf_hub_download(model, name, revision=revision)
        )
        return json.loads(Path(path).read_bytes())

    try:
        adding = json.dumps(values_of("tokenizer.json")["post_processor"])
        settings = values_of("tokenizer_config.json")
        adds = any(part in adding for part in ADDING) or any(
            settings.get(name) for name in ADDS
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        adds = True
    return SPECIAL_TOKENS if adds else None
