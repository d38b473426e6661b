"""Types of keys, the base class of sections, and validation, whose errors are one sentence."""

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from latteclip.config.models import FOLDER
from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import one_line

NAME = "^[A-Za-z0-9_-]{1,100}$"
CHECKSUM = "^(hub|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|git_blob:[0-9a-f]{40})$"
WITH_PLACE = r"\{\}"
# What to do in place of removed keys, which are named by their path or its end, without numbers in
# lists. The next release deletes them. Where nothing replaces a key, the program has one value,
# such as the paper's, or works without.
REMOVED = {
    "use predict --topk and add up the probabilities of the classes of a group.": "class_groups",
    "set compute.shards in place of captions.shards.": "captions",
    "run the commands inside the image of envs/Dockerfile.": "container",
    "set captioner.images_file.": "discover.file",
    "set captioner.max_images.": "groups.groups_per_class",
    "set class_names to folders or discover, or split.class_list to a file.": "split.classes",
    "write model: open_clip:<model>/<tag>.": "labellers.pretrained",
    "leave one image of each sample in the tar.": "split.image",
    "write hf: datasets/<repo>.": "sources.type",
    "set compute.threads.": "threads",
    "list who labels under labellers.": "voters votes",
    "set model, engine, prompt and max_images of the labeller.": (
        "labellers.captioner labellers.scores"
    ),
    "label propagation is gone; take method image_prototypes.": "graph",
    "take method latteclip_fused, or image_prototypes for a classifier of image features.": "head",
    "a training takes one GPU, and several trainings run at once.": "processes",
    "models train again where their images, labels or settings changed.": "retrain retrain_share",
    "take a small CLIP as clip.model, such as MobileCLIP2-S0.": "student",
    "set max_images of captioner, of scores, or of an entry of labellers.": (
        "max_cost captioner.price_input captioner.price_output scores.share scores.min_gain"
    ),
    "set captioner.batch_size.": "captioner.concurrency captioner.requests_per_second",
    "list your scores as a labeller of kind file.": "scores.file",
    "leave it out.": """
        discover.max_new_tokens captioner.timeout captioner.retries inference groups.gap
        groups.layout groups.seed split.test_fraction split.suffix scores.topk scores.choose
        scores.rounds scores.examples scores.orders scores.none_option labellers.share into unpack
        source.textures prototypes weight_decay beta1 beta2 eps batch_norm micro_batch
        gradient_checkpointing compute.compile cache_gib steps_multiple_of
    """,
}
# What a value must do, by a pattern or by pydantic's type of the error.
IN_WORDS = {
    NAME: "be at most 100 letters, digits, _ and -",
    CHECKSUM: "be md5:, sha256: or git_blob: and hexadecimal digits",
    WITH_PLACE: "contain {}",
    "bool_parsing": "be true or false",
    "dict_type": "be keys with values",
    "float_parsing": "be a number",
    "int_from_float": "be a whole number",
    "int_parsing": "be a whole number",
    "list_type": "be a list",
    "model_type": "be keys with values",
    "string_type": "be a text",
    "too_short": "have an entry",
}


def _expand_home(text: str) -> str:
    """Return a path with the home folder in place of ~, as no shell expands it in a file."""
    prefix = FOLDER if text.startswith(FOLDER) else ""
    return f"{prefix}{os.path.expanduser(text.removeprefix(prefix))}"


Auto = Literal["auto"]  # the program finds the number
AUTO: Auto = "auto"
Name = Annotated[str, Field(pattern=NAME)]
WithPlace = Annotated[str, Field(pattern=WITH_PLACE)]
Checksum = Annotated[str, Field(pattern=CHECKSUM)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_expand_home)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Pixels = Annotated[int, Field(ge=16)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]


def _parts(value: Any) -> Any:
    """Return the parts of a comma-separated text, as of `--config`, or a name that is a number."""
    if not isinstance(value, int | str):
        return value
    return list(filter(None, map(str.strip, str(value).split(","))))


def _once(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _seeds(value: Any) -> list[int]:
    """Return the seeds of a number, a list, or a comma-separated text."""
    try:
        seeds = list(
            range(value) if isinstance(value, int) else map(int, _parts(value))
        )
    except (TypeError, ValueError):
        seeds = []
    if not seeds:
        raise PydanticCustomError(
            "seeds", "It should be a number (3) or a list (0,1,2)"
        )
    return seeds


Item = TypeVar("Item")
Several = Annotated[  # a list, or a text with commas
    list[Item],
    BeforeValidator(_parts, json_schema_input_type=Text | list[Text]),
    AfterValidator(_once),
]
Seeds = Annotated[
    list[Natural],
    AfterValidator(_once),
    BeforeValidator(
        _seeds, json_schema_input_type=Positive | list[Natural] | Text
    ),
]


class Section(pydantic.BaseModel):
    """Keys with values."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,  # a folder or dataset may be called 2024
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _parse_null(cls, value: Any, info: ValidationInfo) -> Any:
        """Parse null, which Snakemake passes as a text where it is nested in `--config`."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        is_null = value == "null" and type(None) in get_args(annotation)
        return None if is_null else value


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
        return error["type"] == "extra_forbidden", len(_path(error, values))

    first = max(errors, key=order)
    path = _path(first, values)
    where = f"Configuration key {one_line('.'.join(path))}"
    if first["type"] != "extra_forbidden":
        same = (each for each in errors if _path(each, values) == path)
        wanted = " or ".join(dict.fromkeys(map(_wanted, same)))
        return f"{where} must {wanted}, not {one_line(repr(first['input']), 120)}."
    names = f".{'.'.join(part for part in path if not part.isdigit())}."
    for step, removed in REMOVED.items():
        if any(f".{key}." in names for key in removed.split()):
            return f"{where} was removed: {step}"
    section = kind
    for part in path[:-1]:
        field = section.model_fields.get(part)
        section = (field and section_of(field.annotation)) or section
    return unknown(where, path[-1], section.model_fields)


def _wanted(error: ErrorDetails) -> str:
    """Return what a value must do, as the end of a sentence."""
    if error["type"] == "missing":
        return f"have the key {error['loc'][-1]}"
    name = error.get("ctx", {}).get("pattern", error["type"])
    return (
        IN_WORDS.get(name) or error["msg"].partition(" should ")[2] or error["msg"]
    )


def _path(error: ErrorDetails, values: Any) -> list[str]:
    """Return the keys and indices of an error, without pydantic's names of the types it tried."""
    path = []
    for part in error["loc"]:
        indices = range(len(values)) if isinstance(values, list) else ()
        if part in (values if isinstance(values, Mapping) else indices):
            path.append(str(part))
            values = values[part]
    return path
