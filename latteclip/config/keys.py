"""Every key of the configuration: its type, bounds, default and description, each once.

`make docs` prints the tables of docs/reference.md from these sections. A stage receives a
section as JSON and validates it by the same class. No stage reruns because this file changes, only
because a value does.
"""

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from latteclip.config import models, registry
from latteclip.config.schema import (
    AUTO,
    AtLeastTwo,
    Auto,
    Checksum,
    Name,
    Natural,
    Pixels,
    Positive,
    Section,
    Seeds,
    Several,
    Share,
    ShareAboveZero,
    Text,
    WithPlace,
)

# Images and classes.


class SplitSection(Section):
    """How the folder of a dataset is read."""

    kind: Literal["coop", "folders", "csv", "lists", "webdataset", "parquet"] = (
        "folders"
    )
    """coop: a CoOp split JSON; folders: class folders; csv: a table; lists: a list per split;
    webdataset, parquet: shards
    """
    max_corrupt: Share = 0.01
    """share of images, rounded up, that may be broken and left out"""
    file: Text | None = None
    """the split JSON or table, relative to the dataset's folder"""
    lists: dict[Literal["train", "val", "test"], Text] = {}
    """the list of each split, with lines of image and class name; for shards, a glob"""
    label: Text | None = None
    """labels of shards: a suffix (cls; txt; json:field) or a Parquet column"""
    class_list: Text | None = None
    """file of class names, one per line, in label order; null: classes.txt"""
    examples: Text | None = None
    """folder with other images of each class, <class>/*.jpg, which are answers and name classes"""
    images: Text = "."
    """folder to which the split's paths are relative"""
    classname_replace: dict[str, str] = {"_": " "}
    """replacements that turn folder names into class names"""
    counts: dict[Literal["train", "test", "classes"], Positive] = {}
    """numbers that the index must have; train counts val as well"""


class ClassTextsSection(Section):
    """What the texts of the classes are made of."""

    template: WithPlace | Annotated[list[WithPlace], Field(min_length=1)] = (
        "a photo of a {}."
    )
    """class template with {} for the name, or a list to average over"""
    class_synonyms: dict[str, list[str]] = {}
    """other names of classes, averaged with the name"""


class DiscoverSection(Section):
    """Classes of images without class names, if `class_names` is discover."""

    classes: AtLeastTwo | Auto = AUTO
    """number of classes; auto: a guess, by silhouettes"""
    prompt: Text = (
        "What is the main object in the photo? "
        "Answer with its name alone, one to three words."
    )
    """what the captioner is asked about each image"""


class UnknownSection(Section):
    """Images that show none of the classes."""

    share: float = Field(default=0.05, ge=0, le=0.5)
    """share of training images to mark as unknown, those furthest from every class"""


# Where the images come from.


class HubOrDriveFile(Section):
    """A file of the Hugging Face hub or of Google Drive."""

    hf: Text | None = None
    """a Hugging Face repo, datasets/<repo> for one of data"""
    file: Text | None = ""
    """a path in it, or a glob that matches one of its files"""
    revision: Text | None = None
    """a commit of it"""
    drive: Text | None = None
    """the id of a file on Google Drive"""
    checksum: Checksum | None = None
    """of this source if its bytes differ; hub: the checksum of Hugging Face"""


class DownloadSection(Section):
    """A file to download."""

    sources: list[Text | HubOrDriveFile] = []
    """URLs, paths on this machine, {hf: repo, file: name} or {drive: id}, tried in order"""
    checksum: Checksum | None = None
    """md5:, sha256: or git_blob: and lower-case hexadecimal digits"""
    nested: list[Text] = []
    """archives inside the archive, unpacked where they are"""


class SourceSection(Section):
    """Where the images come from."""

    downloads: dict[str, DownloadSection] = {}
    """files to download, by name"""
    folder: Text | None = None
    """a folder on this machine, in place of downloads"""


class TermsSection(Section):
    """The name of a dataset, and its terms of use."""

    title: str = ""
    """its full name"""
    licence: str = "not stated"
    """terms of use of its images"""
    citation: str = "not stated"
    """the paper to cite"""


# Models.


class ClipSection(Section):
    """The CLIP model that is adapted."""

    model: Text = "ViT-B-32"
    """an open_clip name, hf-hub:<repo> or local-dir:<folder>"""
    pretrained: Text | None = "laion2b_s34b_b79k"
    """open_clip tag or weights file; null: the weights of hf-hub: or local-dir:"""
    precision: Literal["bf16", "fp16", "float32"] = "bf16"
    """arithmetic on a GPU; bf16; fp16: for Turing cards; float32: as on a CPU"""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _leave_out_tag(cls, values: Any) -> Any:
        """Leave out `pretrained` where the model's name gives its weights."""
        if isinstance(values, dict) and str(values.get("model")).startswith(
            models.WHOLE
        ):
            return {**values, "pretrained": None}
        return values


class PromptsSection(Section):
    """The prompts of the captioner."""

    image: Text = "Describe the object in the photo concisely, less than 20 words."
    """about one image; {} is its pseudo-label"""
    group: Text = (
        "Describe the common visual attributes of the objects in all the photos concisely, less "
        "than 20 words."
    )
    """about a group; {} is its pseudo-label"""


class CaptionerSection(Section):
    """The multimodal model that writes the captions."""

    engine: Literal[*registry.ENGINES] = "vllm"  # type: ignore[valid-type]
    """vllm; transformers: where vLLM does not run; openai: a server at OPENAI_BASE_URL;
    decisions: a decision model at DECISIONS_BASE_URL, which only scores classes; file: your own
    captions
    """
    model: Text = "llava-hf/llava-v1.6-mistral-7b-hf"
    """a Hugging Face id, a folder, or a server's name for the model"""
    revision: Text | None = None
    """a commit of the Hugging Face repo; null: its main branch"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """weights and arithmetic"""
    quantization: Text | None = None
    """as vLLM names it, such as awq or fp8; null: as the model's files say"""
    tensor_parallel_size: Positive = 1
    """GPUs that hold the model together"""
    max_new_tokens: Positive = 77
    """longest caption, in tokens"""
    max_model_len: Positive = 4096
    """longest prompt, image and caption together, in tokens"""
    gpu_memory_utilization: ShareAboveZero = 0.9
    """share of the GPU's memory that vLLM takes"""
    batch_size: Positive | Auto = AUTO
    """requests at once; auto: as the GPU's memory allows, 32 to a server"""
    max_image_side: Pixels | None = 1344
    """larger images are scaled to this side; null: no limit"""
    square_side: Pixels | Auto | None = AUTO
    """scale images to a square of this side; auto: 336 for LLaVA-1.6, null for other models"""
    max_images: Positive | None = None
    """images with captions, and with group captions, at most: the least certain; null: all"""
    images_file: Text | None = None
    """engine file: your captions, or names for discovery, by image_id"""
    groups_file: Text | None = None
    """engine file: your group captions, by the image_id of each"""
    max_failed: Share = 0.05
    """share of requests that may fail; those that a server refuses are no failures"""


class GroupsSection(Section):
    """Group captions: four images of a pseudo-label, one group for every image."""

    canvas: Pixels = 672
    """side of the square picture of all four images in pixels"""


class ScoresSection(Section):
    """The captioner's scores of CLIP's best classes, which are not in the paper."""

    kind: Literal["likelihood", "multiple_choice", "decisions"] | None = None
    """multiple_choice: probabilities of the letters of a list, by a capable model; likelihood:
    of each class's text; decisions: by a decision model; null: no scores
    """
    answer: WithPlace | None = None
    """likelihood: text of an answer, {} is the class; null: a space, {} and a full stop"""
    max_images: Positive | None = None
    """images to score, at most: those with the least certain label; null: all"""


class LabellerSection(Section):
    """A labeller of the training images."""

    name: Name
    """its name, different from those of the others"""
    kind: Literal[*registry.LABELLERS]  # type: ignore[valid-type]
    """captions: by a captioner; likelihood, multiple_choice, decisions: class scores by a
    captioner; file: your own votes; zero_shot: another CLIP
    """
    file: Text | None = None
    """your votes, captions or class scores by image_id; Parquet, CSV or JSON Lines"""
    model: Text | None = None
    """its model, by default that of `captioner`; zero_shot: hf-hub:<repo>, local-dir:<folder> or
    open_clip:<model>/<tag>
    """
    engine: Literal[*registry.ENGINES] | None = None  # type: ignore[valid-type]
    """the captioner's engine"""
    prompt: Text | None = None
    """the captioner's prompt about one image"""
    max_images: Positive | None = None
    """images that a captioner is asked about, at most: those with the least certain label"""

    @pydantic.model_validator(mode="after")
    def _check_keys(self) -> "LabellerSection":
        record = registry.LABELLERS[self.kind]
        model = str(self.model)
        names_clip = model.startswith(models.WHOLE) or re.match(
            "open_clip:.+/.", model
        )
        unused = self.model_fields_set.difference(record.keys, {"name", "kind"})
        wanted = None
        if self.name in registry.RESERVED:
            wanted = "have another name: other labels are called that"
        elif record.needs and getattr(self, record.needs) is None:
            wanted = f"have the key {record.needs}"
        elif record.loads_clip and not names_clip:
            wanted = (
                "name its model as open_clip:<model>/<tag>, hf-hub: or local-dir:"
            )
        elif unused:
            wanted = f"not have {' or '.join(sorted(unused))} with this kind"
        if wanted:
            raise PydanticCustomError("labeller", f"It should {wanted}")
        return self


# Training.


class SwitchesSection(Section):
    """The switches of LatteCLIP, all on by default."""

    alpha: ShareAboveZero = 0.01
    """1 - momentum of the targets"""
    class_description: bool = True
    """mix in the class description"""
    image_description: bool = True
    """mix in the image description"""
    group_description: bool = True
    """mix in the group description"""
    mixer_weights: bool = True
    """off: equal weights"""
    mixer_prototypes: Literal["step", "epoch"] = "step"
    """prototypes by which texts are weighted: of the step, or of the epoch's start"""
    zero_shot_loss: bool = True
    """the loss on zero-shot pseudo-labels"""
    finetuned_loss: bool = True
    """the loss on the tuned model's pseudo-labels"""
    prototypes: bool = True
    """off: the target is the mix, and the classifier is the class texts"""

    @pydantic.model_validator(mode="after")
    def _check_parts(self) -> "SwitchesSection":
        is_described = (
            self.class_description
            or self.image_description
            or self.group_description
        )
        if is_described and (self.zero_shot_loss or self.finetuned_loss):
            return self
        raise PydanticCustomError(
            "switches", "It should have a description and a loss on"
        )


class FinetuneSection(Section):
    """The optimiser: AdamW with linear warm-up and cosine decay."""

    epochs: Positive | Auto = 50
    """passes over the training images; auto: by their number"""
    warmup_steps: Natural | Auto = 10
    """steps of linear warm-up; auto: a tenth, at most 50"""
    batch_size: AtLeastTwo | Auto = 512
    """images per step; auto: by their number"""
    lr: Annotated[float, Field(gt=0)] | Auto = 1e-7
    """learning rate after the warm-up; auto: find_learning_rate finds it"""


class MethodSection(Section):
    """A method: its objective, its labels, and how it trains."""

    objective: Literal[*registry.OBJECTIVES] = "zero_shot"  # type: ignore[valid-type]
    """what is optimised, if anything"""
    pseudo_labels: Literal[*registry.PSEUDO_LABELS] = "zero_shot"  # type: ignore[valid-type]
    """the training labels; all but zero_shot are not in the paper"""
    switches: SwitchesSection = SwitchesSection()
    finetune: FinetuneSection = FinetuneSection()
    """keys of `finetune` for this method"""
    of: Text | None = None
    """average_weights: the method whose seeds are averaged"""
    mixing: Share = 0.5
    """average_weights: share of the way from the pretrained weights to those of `of`"""
    like: Text | None = None
    """the method whose settings, also those of a dataset, are the defaults"""


class SelectionSection(Section):
    """The choice of a model without labels."""

    share: float = Field(default=0.1, ge=0, le=0.33)
    """share of training images that a seed leaves out to judge models; 0: none is chosen"""


class ComputeSection(Section):
    """How jobs compute: speed and memory, not results."""

    threads: Positive = 8
    """CPU threads of a job, at most the cores of the machine"""
    shards: int = Field(default=1, ge=1, le=1000)
    """jobs that write each kind of captions, and class scores: as many as there are GPUs"""
    checkpoint_minutes: float = Field(default=10, ge=0)
    """minutes between checkpoints, from which a killed run resumes; 0: one for every epoch"""


class PublishedSection(Section):
    """A figure of a paper, beside which the table sets that of the run."""

    method: Name
    """the method that it is about"""
    column: Name
    """a key of the datasets for top-1 accuracy on it; mean: over all; gain: the mean gain over the
    baseline
    """
    value: float
    """in percent, or percentage points"""
    spread: float = Field(default=0, ge=0)
    """how far the run may be from it without a sentence"""
    source: Text
    """where it is published, such as Table 1"""


class TableSection(Section):
    """The table over all datasets and methods of a run."""

    name: Name = "summary"
    """name of its files results/<name>.csv and .md"""
    baseline: Text = "zero_shot"
    """the reference method: gains are relative to it"""
    published: list[PublishedSection] = []
    """figures of a paper, with which the table compares"""


# Datasets and runs.


class Shared(ClassTextsSection):
    """Keys of a run that a dataset may have too."""

    class_names: Literal["file", "folders", "discover"] | None = None
    """file: split.class_list; folders: the names of the folders; discover: a stage proposes
    them; null: the file if there is one, otherwise as the split has them
    """
    split: SplitSection = SplitSection()
    prompts: PromptsSection = PromptsSection()
    discover: DiscoverSection = DiscoverSection()
    clip: ClipSection = ClipSection()
    captioner: CaptionerSection = CaptionerSection()
    scores: ScoresSection = ScoresSection()
    labellers: list[LabellerSection] | None = None
    """who labels training images beside the class texts; []: nobody; null: scores or captions"""
    selection: SelectionSection = SelectionSection()
    unknown: UnknownSection = UnknownSection()
    groups: GroupsSection = GroupsSection()
    finetune: FinetuneSection = FinetuneSection()
    compute: ComputeSection = ComputeSection()


class DatasetSection(Shared, TermsSection):
    """A dataset: its own keys, and keys of the run that it changes."""

    size: str = ""
    """size of its downloads, in words"""
    source: SourceSection = SourceSection()
    """where the images come from"""
    methods: dict[Name, MethodSection] = {}
    """what the dataset changes of a method"""


class Config(Shared):
    """The whole configuration."""

    dataset: Several[Name] = Field(
        default="demo", validate_default=True, min_length=1
    )
    """dataset keys, separated by commas, or all"""
    image_dir: Text | None = None
    """a folder of images for the one dataset that is run"""
    limit: Positive | None = None
    """images of each split that the run takes; null: all"""
    method: Several[Name] | None = Field(default=None, min_length=1)
    """method names, separated by commas; null: zero_shot, zero_shot_adapted and image_prototypes,
    recommended where there is a GPU, and both recommended and latteclip on the demo and the
    paper's datasets
    """
    seeds: Seeds = Field(default=3, validate_default=True)
    """a number of seeds, or the seeds, separated by commas; 3 means 0, 1 and 2"""
    image_encoders: Several[Text] = []
    """image encoders beside CLIP that help to label images: a name of timm, hf-hub:<repo>,
    local-dir:<folder> or open_clip:<model>/<tag>
    """
    table: TableSection = TableSection()
    methods: dict[Name, MethodSection] = {}
    """methods by name"""
    datasets: dict[Name, DatasetSection] = {}
    """datasets by key"""
