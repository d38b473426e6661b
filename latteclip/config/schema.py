"""Types of keys, the base class of sections, and validation, whose errors are one sentence."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import one_line

NAME = "^[A-Za-z0-9_-]{1,100}$"
CHECKSUM = "^(hub|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|git_blob:[0-9a-f]{40})$"
WITH_PLACE = r"\{\}"
# Removed keys by their path or its end, without numbers in lists, and what to do instead. The next
# release deletes them.
REMOVED = {
    "class_groups": "use predict --topk and add up the probabilities of the classes of a group.",
    "captions": "set compute.shards in place of captions.shards.",
    "container": "run the commands inside the image of envs/Dockerfile.",
    "discover.max_new_tokens": "leave it out: a name has at most 16 tokens.",
    "discover.file": "set captioner.images_file.",
    "captioner.timeout": "leave it out: a server has 120 seconds.",
    "groups.gap": "leave it out: it is 20/672 of groups.canvas, as in the paper's code.",
    "groups.groups_per_class": "set captioner.max_images.",
    "groups.layout": "leave it out: a group is one picture of all four images.",
    "groups.seed": "leave it out: it is 0.",
    "split.classes": "set class_names to folders or discover, or split.class_list to a file.",
    "split.test_fraction": "leave it out: it is 0.3; folders train and test say otherwise.",
    "scores.topk": "leave it out: it is 5.",
    "labellers.share": "leave it out: a file may have votes about some of the images.",
    "labellers.pretrained": "write model: open_clip:<model>/<tag>.",
    "micro_batch": "leave it out: it is halved where memory ends.",
    "split.suffix": "leave it out: a listed image without a suffix is a .jpg.",
    "split.image": "leave one image of each sample in the tar.",
    "into": "leave it out: files lie in the dataset's folder.",
    "unpack": "leave it out: shards (split.kind) are never unpacked.",
    "sources.type": "write hf: datasets/<repo>.",
    "prototypes": "leave it out: prototypes start from class texts, as in the paper.",
    "weight_decay": "leave it out: it is 0.2, as in the paper's code.",
    "inference": "leave it out: 256 images are encoded at once, and fewer where memory ends.",
    "threads": "set compute.threads.",
    "voters": "call them labellers.",
    "labellers.captioner": "set model, engine, prompt and max_images of the labeller.",
    "labellers.scores": "set max_images of the labeller.",
    "votes": "list who labels under labellers.",
    "batch_norm": "statistics of BatchNorm stay those of pretraining.",
    "beta1": "it is 0.9, as in the paper.",
    "beta2": "it is 0.98, as in the paper.",
    "cache_gib": "decoded images are cached on disk.",
    "compute.compile": "leave it out.",
    "eps": "it is 1e-6, as in the paper.",
    "gradient_checkpointing": "leave it out: fewer images are encoded at once where memory ends.",
    "steps_multiple_of": "it is 3, as in the paper's code.",
    "graph": "label propagation is gone; take method image_prototypes.",
    "head": "take method latteclip_fused, or image_prototypes for a classifier of image features.",
    "processes": "a training takes one GPU, and several trainings run at once.",
    "retrain": "models train again where their images, labels or settings changed.",
    "retrain_share": "models train again where their images, labels or settings changed.",
    "student": "take a small CLIP as clip.model, such as MobileCLIP2-S0.",
    "source.textures": "the demo's images are shards in the package; leave the key out.",
    "max_cost": "set max_images of captioner, of scores, or of an entry of labellers.",
    "captioner.price_input": "set max_images; a provider's console limits money.",
    "captioner.price_output": "set max_images; a provider's console limits money.",
    "captioner.concurrency": "set captioner.batch_size.",
    "captioner.requests_per_second": "set captioner.batch_size.",
    "captioner.retries": "leave it out: a request is sent up to six times.",
    "scores.file": "list your scores as a labeller of kind file.",
    "scores.share": "set scores.max_images.",
    "scores.choose": "leave it out: the images with the least certain label come first.",
    "scores.rounds": "leave it out: the images with the least certain label are asked about once.",
    "scores.min_gain": "set scores.max_images.",
    "scores.examples": "leave it out: a question shows one picture.",
    "scores.orders": "leave it out: options are listed in two orders.",
    "scores.none_option": "leave it out: 'none of these' is always an option.",
}
# What a value must do to match a pattern.
IN_WORDS = {
    NAME: "be at most 100 letters, digits, _ and -",
    CHECKSUM: "be md5:, sha256: or git_blob: and hexadecimal digits",
    WITH_PLACE: "contain {}",
}

Auto = Literal["auto"]  # the program finds the number
AUTO: Auto = "auto"
Name = Annotated[str, Field(pattern=NAME)]
WithPlace = Annotated[str, Field(pattern=WITH_PLACE)]
Checksum = Annotated[str, Field(pattern=CHECKSUM)]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Pixels = Annotated[int, Field(ge=16)]
AboveZero = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]


def _parts(value: Any) -> Any:
    """Return the parts of a comma-separated text, as of `--config`."""
    if not isinstance(value, str):
        return value
    return list(filter(None, map(str.strip, value.split(","))))


def _once(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _seeds(value: Any) -> list[int]:
    """Return the seeds of a number, a list, or a comma-separated text."""
    each = range(value) if isinstance(value, int) else _parts(value)
    texts = list(map(str, each)) if isinstance(each, list | range) else []
    if not texts or not all(map(str.isdecimal, texts)):
        raise PydanticCustomError("seeds", "It should be a number (3) or a list (0,1,2)")
    return list(dict.fromkeys(map(int, texts)))


Names = Annotated[
    list[Text],
    BeforeValidator(_parts, json_schema_input_type=Text | list[Text]),
    AfterValidator(_once),
]
Seeds = Annotated[
    list[int],
    BeforeValidator(_seeds, json_schema_input_type=Positive | list[Natural] | Text),
]


class Section(pydantic.BaseModel):
    """Keys with values."""

    model_config = pydantic.ConfigDict(
        extra="forbid", allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _parse_null(cls, value: Any, info: ValidationInfo) -> Any:
        """Parse null, which Snakemake passes as a text where it is nested in `--config`."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        return None if value == "null" and type(None) in get_args(annotation) else value


Kind = TypeVar("Kind", bound=Section)


def validate(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Return a section with values of the right types.

    UserError: the first mistake; names the key and, for an unknown key, the nearest one.
    """
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(_sentence(kind, error.errors(), values)) from None


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a key's type has, in a list or mapping too."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_of, get_args(annotation))), None)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence on an unknown name, with the nearest known one or all of them."""
    return f"{what} is unknown; {suggestion(name, known)}"


def _sentence(kind: type[Section], errors: list[ErrorDetails], values: Any) -> str:
    """Return the sentence on an unknown key, which may be misspelt, or on the innermost error."""

    def order(error: ErrorDetails) -> tuple[bool, int]:
        return error["type"] == "extra_forbidden", len(list(_keys(error["loc"], values)))

    first = max(errors, key=order)
    path = list(_keys(first["loc"], values))
    where = f"Configuration key {one_line('.'.join(path))}"
    field = None
    section: type[Section] | None = kind
    for part in path:
        field = section.model_fields.get(part) if section else None
        section = section_of(field.annotation) if field else section
    if first["type"] == "extra_forbidden" and section:
        names = f".{'.'.join(part for part in path if not part.isdigit())}."
        if step := next((REMOVED[key] for key in REMOVED if f".{key}." in names), None):
            return f"{where} was removed: {step}"
        return unknown(where, path[-1], section.model_fields)
    if field and field.description:
        where += f" ({' '.join(field.description.partition(';')[0].split())})"
    same = (each for each in errors if list(_keys(each["loc"], values)) == path)
    wanted = " or ".join(dict.fromkeys(map(_wanted, same)))
    if field and type(None) in get_args(field.annotation):
        wanted += " or be null"
    return f"{where} must {wanted}, not {one_line(repr(first['input']), 120)}."


def _wanted(error: ErrorDetails) -> str:
    """Return what a value must do, as the end of a sentence."""
    if error["type"] == "missing":
        return f"have the key {error['loc'][-1]}"
    pattern = error.get("ctx", {}).get("pattern", "")
    return IN_WORDS.get(pattern) or error["msg"].partition(" should ")[2] or error["msg"]


def _keys(location: tuple[int | str, ...], values: Any) -> Iterator[str]:
    """Yield the keys and indices of a location, without pydantic's names of the types it tried."""
    for part in location:
        indices = range(len(values)) if isinstance(values, list) else ()
        if part in (values if isinstance(values, Mapping) else indices):
            yield str(part)
            values = values[part]
