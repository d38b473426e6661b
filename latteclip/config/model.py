"""The keys of the configuration, each with its type, bounds and description.

Every key may be absent here: sections are checked before they are laid over each other. Defaults
are in config/config.yaml, and `make docs` prints the tables of docs/configuration.md from both.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field
from pydantic_core import ErrorDetails, PydanticCustomError

from latteclip.core.errors import UserError, suggestion
from latteclip.core.terminal import one_line

Auto = Literal["auto"]  # the program finds the number
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Pixels = Annotated[int, Field(ge=16)]
AboveZero = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Half = Annotated[float, Field(ge=0, le=0.5)]
Third = Annotated[float, Field(ge=0, le=0.33)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Line = Annotated[str, Field(pattern=r"^[^\n]+$")]  # a name or a path
Text = Annotated[str, Field(min_length=1)]
Below = Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*(/[^/\\.][^/\\]*)*$")]  # a path inside
KEY = "^[A-Za-z0-9_-]{1,100}$"
Key = Annotated[str, Field(pattern=KEY)]
Suffix = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.]*$")]
FileName = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
CHECKSUM = "md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|git_blob:[0-9a-f]{40}"
IN_WORDS = f"match pattern '{KEY}'", "be at most 100 letters, digits, _ and -"
MethodName = Annotated[str, Field(pattern="^[a-z0-9_]{1,100}$")]
Texts = Text | Annotated[list[str], Field(min_length=1)]
Shards = Annotated[int, Field(ge=1, le=1000)] | Auto
Engine = Literal["vllm", "openai", "transformers", "file"]
Objective = Literal[
    "zero_shot",
    "zero_shot_adapted",
    "label_propagation",
    "image_prototypes",
    "image_prototypes_encoders",
    "flyp",
    "flyp_supervised",
    "latteclip",
    "average_weights",
]


def key(description: str) -> Any:
    """Return a key of a section, which may be absent."""
    return Field(default=None, description=description)


class Section(pydantic.BaseModel, extra="forbid", allow_inf_nan=False):
    """Keys with values."""

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _parse_null(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Parse null, which is a text in nested `--config`. Numbers pydantic parses itself.

        It would take a boolean for one, too.
        """
        annotation = cls.model_fields[str(info.field_name)].annotation
        values = value if isinstance(value, list) else [value]
        if bool not in _types(annotation) and any(isinstance(one, bool) for one in values):
            raise PydanticCustomError("boolean", "It should be no boolean")
        return None if value == "null" and type(None) in get_args(annotation) else value


def _types(annotation: Any) -> Iterator[Any]:
    """Yield a type and those that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


class Counts(Section):
    train: Positive = key("training images, validation images included")
    test: Positive = key("test images")
    classes: Annotated[int, Field(ge=2)] = key("classes")


class Lists(Section):
    train: Line = key("list or shards of the training images")
    val: Line = key("list or shards of the validation images")
    test: Line = key("list or shards of the test images")


class Split(Section):
    kind: Literal["coop", "folders", "csv", "lists", "webdataset", "parquet"] = key(
        "a CoOp split JSON, class folders, a table, one list per split, or shards of two kinds"
    )
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = key("share of labelled images for testing")
    max_corrupt: Share = key("share of images, rounded up, that may be broken")
    file: Line = key("the split JSON or table, relative to the dataset's folder")
    lists: Lists = key(
        "the list of each split, with lines of image and class name; for shards, a glob"
    )
    suffix: str = key("suffix that turns an image of a list into a path")
    image: Suffix = key("suffix of the images in tar shards, if samples have several images")
    label: Line = key("labels of shards: a suffix (cls; txt; json:field) or a Parquet column")
    classes: Line = key(
        "file of class names, one per line, in label order; discover: a stage proposes them"
    )
    images: Line = key("folder to which the split's paths are relative")
    classname_replace: dict[str, str] = key("replacements that turn folder names into class names")
    counts: Counts = key("numbers that the index must have")


class Prompts(Section):
    image: Text = key("about one image; {} is its pseudo-label")
    group: Text = key("about a group; {} is its pseudo-label")


class Discover(Section):
    classes: Annotated[int, Field(ge=2)] | Auto = key(
        "number of classes; auto: where merging stops"
    )
    prompt: Text = key("what the captioner is asked about each image")
    max_new_tokens: Positive = key("longest name, in tokens")
    file: Line | None = key("engine file: your names, by image_id; null: captioner.images_file")


class Clip(Section):
    model: Line = key("an open_clip name, hf-hub:<repo> or local-dir:<folder>")
    pretrained: Line | None = key("open_clip tag or weights file; null: in hf-hub: or local-dir:")
    precision: Literal["bf16", "fp16", "float32"] = key("GPU arithmetic; weights are float32")


class Inference(Section):
    batch_size: Positive = key("images encoded at once")
    topk: Annotated[int, Field(ge=5)] = key("best classes kept for each image")


class Captioner(Section):
    engine: Engine = key("openai: a server at OPENAI_BASE_URL; file: your own captions")
    model: Line = key("a Hugging Face id, a folder, or a server's name for the model")
    revision: Line | None = key("a commit of the Hugging Face repo; null: its main branch")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key("weights and arithmetic")
    quantization: Line | None = key("as vLLM names it; null: as the model's files say")
    tensor_parallel_size: Positive = key("GPUs that hold the model together")
    max_new_tokens: Positive = key("longest caption, in tokens")
    max_model_len: Positive = key("longest prompt, image and caption together, in tokens")
    gpu_memory_utilization: ShareAboveZero = key("share of the GPU's memory that vLLM takes")
    batch_size: Positive = key("requests that the engine works on at once")
    max_image_side: Pixels | None = key("larger images are scaled to this side; null: no limit")
    square_side: Pixels | Auto | None = key("scale images to a square; auto: 336 for LLaVA-1.6")
    concurrency: Positive = key("engine openai: requests that the server gets at once")
    timeout: AboveZero = key("engine openai: seconds to wait for an answer")
    retries: Natural = key("engine openai: retries if the server is busy or silent")
    images_file: Line | None = key("engine file: your captions, by image_id")
    groups_file: Line | None = key("engine file: your group captions, by the image_id of each")
    max_failed: Share = key("share of requests that may end without an answer")


class Captions(Section):
    shards: Shards = key("jobs that write captions or class scores; auto: one for each free GPU")


class Scores(Section):
    kind: Literal["likelihood", "multiple_choice"] | None = key(
        "likelihood: of each class's text; multiple_choice: of letters of a list; null: no scores"
    )
    topk: Annotated[int, Field(ge=2)] = key("CLIP's best classes to score; all if at most 20")
    answer: Annotated[str, Field(pattern=r"\{\}")] | None = key(
        "likelihood: text after the prompt, {} is the class; null: a space, {} and a full stop"
    )
    orders: Positive = key("multiple_choice: number of random orders in which classes are listed")
    share: ShareAboveZero = key("share of the images to score, those with the least certain label")
    file: Line | None = key("engine file: your scores: image_id, options and log_probabilities")


class Selection(Section):
    share: Third = key("share of training images that each seed leaves out; 0: no model is chosen")


class Unknown(Section):
    share: Half = key("share of training images to mark as unknown")


class Groups(Section):
    seed: Natural = key("seed of the groups")
    groups_per_class: Positive | None = key("groups of each class; null: one for every image")
    layout: Literal["grid", "multi_image"] = key("one picture of all four images, or four pictures")
    canvas: Pixels = key("grid: side of the square picture in pixels")
    gap: Natural = key("grid: width of the gaps in pixels")


class Finetune(Section):
    epochs: Positive | Auto = key("passes over the training images; auto: by their number")
    warmup_steps: Natural | Auto = key("steps of linear warm-up; auto: a tenth, at most 50")
    steps_multiple_of: Positive = key("steps of an epoch are rounded up to a multiple of this")
    batch_size: Annotated[int, Field(ge=2)] | Auto = key("images per step; auto: by their number")
    lr: AboveZero | Auto = key("learning rate after the warm-up; auto: find_learning_rate finds it")
    beta1: Decay = key("AdamW's first decay")
    beta2: Decay = key("AdamW's second decay")
    eps: AboveZero = key("AdamW's epsilon")
    weight_decay: AtLeastZero = key("AdamW's weight decay, on matrices")
    batch_norm: Literal["frozen", "train"] = key("statistics of BatchNorm: of pretraining, or new")


class Compute(Section):
    cache_gib: AtLeastZero = key("GiB in memory for decoded images; more are on disk, if they fit")
    micro_batch: Positive | Auto | None = key("images encoded at once; auto: what fits; null: all")
    gradient_checkpointing: bool = key("recompute activations: less memory, more time")
    compile: bool = key("torch.compile the towers")
    checkpoint_minutes: AtLeastZero = key("minutes between checkpoints; 0: one for every epoch")


class Processes(Section):
    finetune: Positive = key("processes of finetune, which divide each batch")


class Threads(Section):
    index_images: Positive = key("threads of index_images")
    pseudo_label_images: Positive = key("threads of pseudo_label_images")
    caption: Positive = key("threads of caption_images, caption_groups and score_classes")
    finetune: Positive = key("threads of finetune")
    evaluate: Positive = key("threads of evaluate")


class Switches(Section):
    alpha: ShareAboveZero = key("1 - momentum of the targets")
    class_description: bool = key("mix in the class description")
    image_description: bool = key("mix in the image description")
    group_description: bool = key("mix in the group description")
    mixer_weights: bool = key("off: equal weights")
    mixer_prototypes: Literal["step", "epoch"] = key("prototypes against which texts are weighted")
    zero_shot_loss: bool = key("the loss on zero-shot pseudo-labels")
    finetuned_loss: bool = key("the loss on the tuned model's pseudo-labels")
    prototypes: bool = key("off: the target is the mix, and the classifier is the class texts")


class Graph(Section):
    neighbours: Positive = key("images, and class texts, linked to an image")
    gamma: AboveZero = key("power of the cosines between images and texts")
    alpha: Annotated[float, Field(gt=0, lt=1)] = key("share of a score that comes from neighbours")
    normalise_test_links: bool = key("off: links of test images are plain, as in the authors' code")


class MethodOfDataset(Section):
    """Keys of a method that a dataset changes."""

    objective: Objective = key("what is optimised, if anything")
    of: Line = key("average_weights: the method whose trainings, one for each seed, are averaged")
    pseudo_labels: Literal["zero_shot", "zero_shot_adapted", "caption", "lmm", "fused"] = key(
        "the training labels; all but zero_shot are not in the paper"
    )
    prototypes: Literal["text", "image"] = key("prototypes at the start; image is not in the paper")
    head: Literal["tuned", "refit"] = key("the classifier after training; refit: image prototypes")
    graph: Graph = key("the graph of class texts and training images of label_propagation")
    switches: Switches = key("the switches of LatteCLIP, all on by default")
    finetune: Finetune = key("keys of `finetune` for this method")


class Method(MethodOfDataset):
    like: Line = key("the method whose settings, also those of a dataset, are the defaults")


class Table(Section):
    name: Key = key("name of its files results/<name>.csv and .md")
    baseline: Line = key("the reference method: gains are relative to it")


class HubOrDriveFile(Section):
    hf: Line = key("a Hugging Face repo")
    file: Line = key("a path in it, or a glob that matches one of its files")
    revision: Line = key("a commit of it")
    type: Literal["model", "dataset"] = key("kind of repo")
    drive: Line = key("the id of a file on Google Drive")
    checksum: Annotated[str, Field(pattern=f"^(hub|{CHECKSUM})$")] = key(
        "of this source if its bytes differ; hub: the checksum of Hugging Face"
    )


class Download(Section):
    sources: list[Line | HubOrDriveFile] = key(
        "URLs, paths on this machine, {hf: repo, file: name} or {drive: id}, tried in order"
    )
    checksum: Annotated[str, Field(pattern=f"^({CHECKSUM})$")] = key(
        "md5:, sha256: or git_blob: and lower-case hexadecimal digits"
    )
    into: Below = key("folder inside the dataset's folder for the file or its content")
    nested: list[Below] = key("archives inside the archive, unpacked where they are")
    unpack: bool = key("off: the file is a shard of images, read as it is")


class Textures(Section):
    train: Positive = key("training images")
    test: Positive = key("test images")
    gap: Share = key("distance to the source domain")
    seed: Natural = key("seed of the textures")


class Source(Section):
    folder: Line = key("a folder on this machine")
    textures: Textures = key("textures generated by latteclip.demo")
    downloads: dict[FileName, Download] = key("files to download, by name")

    @pydantic.model_validator(mode="after")
    def _check_number(self) -> "Source":
        if len(self.model_fields_set) != 1:
            raise PydanticCustomError("source", "It should have one key")
        return self


class Shared(Section):
    """Keys that a dataset may have too."""

    split: Split = key("how the folder of a dataset is read")
    template: Texts = key("class template with {} for the name, or a list to average over")
    prompts: Prompts = key("the prompts of the captioner")
    discover: Discover = key("classes of images without class names, if split.classes: discover")
    clip: Clip = key("the CLIP model that is adapted")
    inference: Inference = key("zero-shot pseudo-labels and evaluation")
    captioner: Captioner = key("the multimodal model that writes the captions")
    captions: Captions = key("how captioning is divided into jobs")
    scores: Scores = key("the captioner's scores of CLIP's best classes")
    selection: Selection = key("the choice of a model without labels")
    unknown: Unknown = key("images that show none of the classes")
    groups: Groups = key("group captions: four images of a pseudo-label, one group for every image")
    finetune: Finetune = key("the optimiser")
    compute: Compute = key("how fine-tuning is computed: speed and memory, not results")
    processes: Processes = key("processes of a job, each on its own GPU")
    threads: Threads = key("CPU threads of each job")


class Dataset(Shared):
    title: str = key("its full name")
    licence: str = key("terms of use of its images")
    citation: str = key("the paper to cite")
    size: str = key("size of its downloads, in words")
    source: Source = key("where the images come from: one of these keys")
    class_synonyms: dict[str, list[str]] = key("other names of classes, averaged with the name")
    methods: dict[Key, MethodOfDataset] = key("what the dataset changes of a method")


class Config(Shared):
    dataset: Texts = key("dataset keys, separated by commas, or all")
    image_dir: Line | None = key("a folder of images for the one dataset that is run")
    limit: Positive | None = key("images of each split that the run takes; null: all")
    container: Line | None = key("an image for --sdm apptainer: a file or an address")
    method: Texts | None = key("method names, separated by commas; null: see `config.yaml`")
    seeds: (
        Annotated[int, Field(ge=1, le=1000)]
        | Annotated[list[Natural], Field(min_length=1)]
        | Annotated[str, Field(pattern="^[0-9]{1,9}(,[0-9]{1,9}){0,999}$")]
    ) = key("a number of seeds, or the seeds, separated by commas")
    image_encoders: list[Line] | Line = key(
        "image encoders beside CLIP that help to label images: a name of timm, hf-hub:<repo>, "
        "local-dir:<folder> or open_clip:<model>/<tag>"
    )
    table: Table = key("the table over all datasets and methods of a run")
    methods: dict[MethodName, Method] = key("methods by name")
    datasets: dict[Key, Dataset] = key("datasets by key")


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


RENAMED = {"eyes": "image_encoders"}  # keys, by their old names


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence on an unknown name, with the nearest known one or all of them."""
    return f"{what} is unknown; {suggestion(name, known)}"


def _sentence(errors: list[ErrorDetails], values: Any) -> str:
    """Return the sentence on the first error, or on an unknown key, which may be misspelt."""
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    path = list(_keys(first["loc"], values))
    where = f"Configuration key {one_line('.'.join(map(str, path)))}"
    field, section = None, section_of(Config)
    for part in path:
        field = section.model_fields.get(str(part)) if section else None
        section = section_of(field.annotation) if field else section
    if first["type"] == "extra_forbidden" and section:
        if path[-1] in RENAMED:
            return f"{where} is called {RENAMED[path[-1]]} now; use that name."
        return unknown(where, str(path[-1]), section.model_fields)
    meaning = (field.description or "").partition(";")[0] if field else ""
    same = [error["msg"] for error in errors if list(_keys(error["loc"], values)) == path]
    wanted = dict.fromkeys(message.partition(" should ")[2] or message for message in same)
    if field and type(None) in get_args(field.annotation):
        wanted["be null"] = None
    return (
        f"{where}{f' ({meaning})' if meaning else ''} must "
        f"{' or '.join(wanted).replace(' or be ', ' or ').replace(*IN_WORDS)}, not "
        f"{one_line(repr(first['input']), 120)}."
    )


def _keys(location: tuple[int | str, ...], values: Any) -> Iterator[int | str]:
    """Yield the keys and indices of a location, without pydantic's names of the types it tried."""
    for part in location:
        indices = range(len(values)) if isinstance(values, list) else ()
        if part in (values if isinstance(values, Mapping) else indices):
            yield part
            values = values[part]
