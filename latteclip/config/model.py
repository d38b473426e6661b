"""The whole configuration: its sections, and what is true of the run, of methods and datasets.

Every key may be absent: layers are checked before they are laid over each other.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field
from pydantic_core import ErrorDetails, PydanticCustomError

from latteclip.config import methods
from latteclip.config.removed import removed_key
from latteclip.config.sections.base import (
    Line,
    Natural,
    Positive,
    Section,
    Text,
    inner,
    key,
    narrowed,
    optional_key,
)
from latteclip.config.sections.captioner import CaptionerSection
from latteclip.config.sections.captions import CaptionsSection
from latteclip.config.sections.class_texts import (
    SynonymsSection,
    TemplateSection,
    Texts,
)
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.compute import ComputeSection
from latteclip.config.sections.discover import DiscoverSection
from latteclip.config.sections.downloads import DownloadsSection, TermsSection
from latteclip.config.sections.finetune import FinetuneSection
from latteclip.config.sections.groups import GroupsSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.config.sections.prompts import PromptsSection
from latteclip.config.sections.scores import ScoresSection
from latteclip.config.sections.selection import SelectionSection
from latteclip.config.sections.split import SplitSection
from latteclip.config.sections.switches import SwitchesSection
from latteclip.config.sections.table import KEY, Key, TableSection
from latteclip.config.sections.threads import ThreadsSection
from latteclip.config.sections.training import TrainingSection
from latteclip.config.sections.unknown import UnknownSection
from latteclip.config.sections.voter import VoterSection
from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import one_line

IN_WORDS = {
    f"match pattern '{KEY}'": "be at most 100 letters, digits, _ and -",
}
MethodName = Annotated[str, Field(pattern="^[a-z0-9_]{1,100}$")]
if TYPE_CHECKING:
    Engine = str
    Objective = str
    Votes = str
    Kind = str
    PseudoLabels = str
else:
    Engine = Literal[*methods.ENGINES]
    Objective = Literal[*methods.OBJECTIVES]
    Votes = Literal[*methods.VOTERS]
    Kind = Literal[*methods.VOTER_KINDS]
    PseudoLabels = Literal[*methods.PSEUDO_LABELS]


# Stages do not import the names of all engines and objectives: a new one reruns none of them.


class CheckedCaptionerSection(CaptionerSection):
    __doc__ = CaptionerSection.__doc__
    engine: Engine = narrowed(CaptionerSection, "engine")


class CheckedVoterSection(VoterSection):
    __doc__ = VoterSection.__doc__
    kind: Kind | None = narrowed(VoterSection, "kind")
    model: Line | None = optional_key("its model; default: that of `captioner`")
    pretrained: Line | None = optional_key("zero_shot: open_clip tag or weights file")
    engine: Engine | None = optional_key("the captioner's engine")
    prompt: Text | None = optional_key("the captioner's prompt about one image")
    max_images: Positive | None = optional_key(
        "images that a captioner is asked about, at most: those with the least certain label"
    )
    captioner: CheckedCaptionerSection = inner(
        CheckedCaptionerSection, "other keys of `captioner` for this voter"
    )
    scores: ScoresSection = inner(ScoresSection, "other keys of `scores` for this voter")

    @pydantic.model_validator(mode="after")
    def _check_keys(self) -> "CheckedVoterSection":
        if self.name is None or self.kind is None:
            raise PydanticCustomError("voter", "It should have a name and a kind")
        if self.name in methods.NO_VOTERS:
            raise PydanticCustomError(
                "voter", "It should have another name: other labels are called that"
            )
        record = methods.VOTER_KINDS[self.kind]
        given = self.model_fields_set - {"name", "kind"}
        if record.needs and getattr(self, record.needs) is None:
            raise PydanticCustomError("voter", f"It should have the key {record.needs}")
        if unused := sorted(given.difference(record.keys)):
            keys = " or ".join(unused)
            raise PydanticCustomError("voter", f"It should not have {keys} with this kind")
        return self


def _of_different_names(voters: list[CheckedVoterSection]) -> list[CheckedVoterSection]:
    names = [voter.name for voter in voters]
    for name in names:
        if names.count(name) > 1:
            raise PydanticCustomError(
                "voters", f"It should not have two voters called {name}"
            )
    return voters


Voters = Annotated[list[CheckedVoterSection], pydantic.AfterValidator(_of_different_names)]


class MethodOfDataset(TrainingSection):
    """Keys of a method that a dataset changes."""

    objective: Objective = narrowed(TrainingSection, "objective")
    pseudo_labels: PseudoLabels = narrowed(TrainingSection, "pseudo_labels")
    of: Line | None = optional_key("average_weights: the method whose seeds are averaged")
    # What a training takes as it comes, for its objective validates it.
    switches: SwitchesSection = inner(SwitchesSection)  # type: ignore[assignment]


class Method(MethodOfDataset):
    like: Line | None = optional_key(
        "the method whose settings, also those of a dataset, are the defaults"
    )


class Source(DownloadsSection):
    folder: Line | None = optional_key("a folder on this machine")

    @pydantic.model_validator(mode="after")
    def _check_number(self) -> "Source":
        if len(self.model_fields_set) != 1:
            raise PydanticCustomError("source", "It should have one key")
        return self


class Shared(TemplateSection):
    """Keys that a dataset may have too."""

    split: SplitSection = inner(SplitSection)
    prompts: PromptsSection = inner(PromptsSection)
    discover: DiscoverSection = inner(DiscoverSection)
    clip: ClipSection = inner(ClipSection)
    inference: InferenceSection = inner(InferenceSection)
    captioner: CheckedCaptionerSection = inner(CheckedCaptionerSection)
    captions: CaptionsSection = inner(CaptionsSection)
    scores: ScoresSection = inner(ScoresSection)
    votes: Votes | None = key(
        None,
        "evidence for fused labels; caption: captions; lmm: class scores, which need scores.kind; "
        "null: class scores if there are any, otherwise captions",
    )
    voters: Voters = key([], "several voters in place of `votes`, each with these keys")
    selection: SelectionSection = inner(SelectionSection)
    unknown: UnknownSection = inner(UnknownSection)
    groups: GroupsSection = inner(GroupsSection)
    finetune: FinetuneSection = inner(FinetuneSection)
    compute: ComputeSection = inner(ComputeSection)
    threads: ThreadsSection = inner(ThreadsSection)


class Dataset(Shared, SynonymsSection, TermsSection):
    size: str = optional_key("size of its downloads, in words", default="")
    source: Source = optional_key("where the images come from: one of these keys")
    methods: dict[Key, MethodOfDataset] = optional_key(
        "what the dataset changes of a method", default={}
    )


class RunSection(Section):
    """What to run."""

    dataset: Texts = key("demo", "dataset keys, separated by commas, or all")
    image_dir: Line | None = key(None, "a folder of images for the one dataset that is run")
    limit: Positive | None = key(None, "images of each split that the run takes; null: all")
    container: Line | None = key(
        None,
        "an image for --sdm apptainer: a .sif file or an address such as docker://<image>",
    )
    method: Texts | None = key(
        None,
        "method names, separated by commas; null: zero_shot, zero_shot_adapted, image_prototypes, "
        "recommended, and latteclip except on images in your own folder",
    )
    seeds: (
        Annotated[int, Field(ge=1, le=1000)]
        | Annotated[list[Natural], Field(min_length=1)]
        | Annotated[str, Field(pattern="^[0-9]{1,9}(,[0-9]{1,9}){0,999}$")]
    ) = key(3, "a number of seeds, or the seeds, separated by commas; 3 means 0, 1 and 2")
    image_encoders: list[Line] | Line = key(
        [],
        "image encoders beside CLIP that help to label images: a name of timm, hf-hub:<repo>, "
        "local-dir:<folder> or open_clip:<model>/<tag>",
    )


class Config(Shared, RunSection):
    table: TableSection = inner(TableSection)
    methods: dict[MethodName, Method] = optional_key("methods by name", default={})
    datasets: dict[Key, Dataset] = optional_key("datasets by key", default={})


def check(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, whole or in part, with values of the right types.

    UserError: the first mistake; names the key and, for an unknown key, the nearest one.
    """
    try:
        return Config.model_validate(values).model_dump(exclude_unset=True)
    except pydantic.ValidationError as error:
        raise UserError(_sentence(error.errors(), values)) from None


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a key's type has, in a list or mapping too."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_of, get_args(annotation))), None)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence on an unknown name, with the nearest known one or all of them."""
    return f"{what} is unknown; {suggestion(name, known)}"


def _sentence(errors: list[ErrorDetails], values: Any) -> str:
    """Return the sentence on the first error, or on an unknown key, which may be misspelt."""
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    path = list(_keys(first["loc"], values))
    where = f"Configuration key {one_line('.'.join(map(str, path)))}"
    field = None
    section = section_of(Config)
    for part in path:
        field = section.model_fields.get(str(part)) if section else None
        section = section_of(field.annotation) if field else section
    if first["type"] == "extra_forbidden" and section:
        if step := removed_key(list(map(str, path))):
            return f"{where} was removed: {step}"
        return unknown(where, str(path[-1]), section.model_fields)
    if field and field.description:
        meaning = field.description.partition(";")[0]
        where = f"{where} ({meaning})"
    wanted: dict[str, None] = {}
    for error in errors:
        if list(_keys(error["loc"], values)) == path:
            message = error["msg"]
            wanted[message.partition(" should ")[2] or message] = None
    if field and type(None) in get_args(field.annotation):
        wanted["be null"] = None
    alternatives = " or ".join(IN_WORDS.get(each, each) for each in wanted)
    alternatives = alternatives.replace(" or be ", " or ")
    given = one_line(repr(first["input"]), 120)
    return f"{where} must {alternatives}, not {given}."


def _keys(location: tuple[int | str, ...], values: Any) -> Iterator[int | str]:
    """Yield the keys and indices of a location, without pydantic's names of the types it tried."""
    for part in location:
        indices = range(len(values)) if isinstance(values, list) else ()
        if part in (values if isinstance(values, Mapping) else indices):
            yield part
            values = values[part]
