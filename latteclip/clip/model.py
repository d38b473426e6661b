"""Load and save CLIP models of open_clip, and those with a classifier of their features."""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import open_clip
import torch
from pydantic import Field, PositiveInt
from safetensors.torch import save_file
from torchvision.transforms import v2

from latteclip.clip import clip_config
from latteclip.clip.classifier import (
    Classifier,
    load_classifier,
    save_classifier,
)
from latteclip.clip.clip_config import TEXT_TOWER
from latteclip.clip.model_files import CLASSIFIER, CLIP_CONFIG, find_model
from latteclip.config.models import FOLDER
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import write_json
from latteclip.data.loader import Transform

log = logging.getLogger(__name__)
# Images that a CPU encodes at once: more need memory and are no faster.
AT_ONCE = 32
# Values of clip.precision, with the type of a GPU's matrix products.
PRECISIONS = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float32": torch.float32,
}


@dataclass
class Clip:
    """A CLIP model with its tokenizer and transform, or an image encoder without texts."""

    model: torch.nn.Module
    get_tokenizer: Callable[[], Any]  # slow, and not every stage has texts
    preprocess: Transform  # evaluation transform
    config: dict[str, Any]  # open_clip's model_cfg
    device: torch.device
    precision: str = "bf16"  # precision of both towers on CUDA, one of PRECISIONS
    # Images or texts encoded at once with gradients.
    micro_batch: int | None = None
    at_once: int | None = None  # the same without gradients, None: all of a batch
    # Configuration of one of transformers.
    text_tower: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raise UserError for bf16 on a card that only emulates it."""
        if self.device.type != "cuda":
            self.at_once = AT_ONCE
        elif self.precision == "bf16" and not torch.cuda.is_bf16_supported(
            including_emulation=False
        ):
            raise UserError(
                f"clip.precision is bf16, which the card {torch.cuda.get_device_name()} cannot "
                "compute in; set it to fp16 or float32."
            )

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.config["embed_dim"]  # type: ignore[no-any-return]

    @property
    def pixels(self) -> Transform:
        """The transform up to uint8 [3, H, W], of which `normalise` does the rest."""
        *steps, _to_float, _normalise = self.preprocess.transforms  # type: ignore[attr-defined]
        return v2.Compose([*steps, v2.PILToTensor()])  # type: ignore[no-any-return]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images that the model encodes."""
        size: Any = self.model.visual.image_size  # type: ignore[union-attr]
        return (size, size) if isinstance(size, int) else tuple(size)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Return the input [B, 3, H, W] for images uint8 [B, 3, H, W] on the device."""
        mean, std = self._moments
        return images.float().div_(255).sub_(mean).div_(std)

    @cached_property
    def _moments(self) -> list[torch.Tensor]:
        """Mean and standard deviation [3, 1, 1] of the colours, on the device."""
        last = self.preprocess.transforms[-1]  # type: ignore[attr-defined]
        moments = map(torch.as_tensor, (last.mean, last.std))
        return [self.send(each.float()[:, None, None]) for each in moments]

    @cached_property
    def tokenizer(self) -> Any:
        """Texts to tokens [T, L]."""
        return self.get_tokenizer()

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a CPU tensor to the device, asynchronously if it is a GPU."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def autocast(self) -> AbstractContextManager[None]:
        """Return autocast to bf16 or fp16 on CUDA, and nothing for float32 or on a CPU."""
        if self.device.type == "cuda" and self.precision != "float32":
            return torch.autocast("cuda", dtype=PRECISIONS[self.precision])
        return nullcontext()

    def loss_scaler(self) -> torch.amp.GradScaler:
        """Return a scaler of the loss: in fp16 on CUDA, where gradients underflow, else by 1."""
        is_fp16 = self.device.type == "cuda" and self.precision == "fp16"
        return torch.amp.GradScaler(self.device.type, enabled=is_fp16)

    def save(self, folder: Path) -> None:
        """Write a new folder that stock open_clip loads by `local-dir:`."""
        folder.mkdir(parents=True)
        model: Any = self.model
        state = {  # copies: safetensors takes no shared memory
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }
        save_file(state, folder / clip_config.WEIGHTS)
        config = {
            "model_cfg": self.config,
            "preprocess_cfg": model.visual.preprocess_cfg,
        }
        write_json(folder / CLIP_CONFIG, config)
        if self.text_tower is not None:
            write_json(folder / TEXT_TOWER / "config.json", self.text_tower)
        if isinstance(self.tokenizer, open_clip.tokenizer.HFTokenizer):
            self.tokenizer.save_pretrained(folder)


def load(
    model: str,
    pretrained: str | None,
    device: torch.device,
    precision: str = "bf16",
) -> Clip:
    """Load weights in float32, in evaluation mode, without running code of a model.

    `model` is an open_clip name, `hf-hub:<repo>` or `local-dir:<folder>`, and `pretrained` an
    open_clip tag or a weights file, None with the two prefixes. A GPU encodes in the precision
    bf16, fp16 or float32, a CPU in float32.

    UserError: the model is missing or damaged, or the device lacks the precision. A damaged
    tokenizer raises it when it is first used.
    """
    if not clip_config.is_foreign(model):
        model = model.replace("/", "-")  # ViT-B/32, as OpenAI writes it
    what = f"CLIP model {model!r} with pretrained {pretrained!r}"
    with (
        loading(what, clip_config.REMEDY),
        tempfile.TemporaryDirectory() as folder,
    ):
        config = clip_config.read(model)
        tower = clip_config.text_tower(model, config)
        options: dict[str, Any] = {"pretrained_text": False}
        if tower is not None:  # open_clip reads its configuration from a folder
            write_json(Path(folder) / "config.json", tower)
            local = {"hf_model_name": folder, "hf_model_pretrained": False}
            options["text_cfg"] = {**config["text_cfg"], **local}
        # Its configuration may ask for more than it has.
        if clip_config.is_foreign(model):
            build = partial(
                open_clip.create_model,
                model,
                load_weights=False,
                device="meta",
                **options,
            )
            check_size(build, clip_config.files(model))
        with warnings.catch_warnings():
            # open_clip only warns if weights were trained with another activation.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            network, _, preprocess = open_clip.create_model_and_transforms(
                model,
                pretrained=pretrained,
                device=device,
                require_pretrained=True,
                **options,
            )
        check_finite(network)

        def tokenizer() -> Any:
            with loading(what, clip_config.REMEDY):
                return clip_config.tokenizer(model, config)

        return Clip(
            network.eval(),
            tokenizer,
            preprocess,
            config,
            device,
            precision,
            text_tower=tower,
        )


@contextlib.contextmanager
def loading(what: str, remedy: str) -> Iterator[None]:
    """Turn every error inside into a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what} cannot be loaded: {error}") from error
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"{what} cannot be loaded ({reason}); {remedy}."
        ) from error


def check_size(
    build: Callable[[], torch.nn.Module], files: Sequence[Path]
) -> None:
    """Raise UserError if an untrusted network has more numbers than its files have bytes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that there are no weights
    try:
        with torch.device("meta"):  # takes no memory
            numbers = sum(
                tensor.numel() for tensor in build().state_dict().values()
            )
    finally:
        logging.disable(before)
    size = sum(path.stat().st_size for path in files)
    if numbers > size:
        raise UserError(
            f"its network has {numbers} numbers, and its files have {size} bytes; "
            f"{clip_config.REMEDY}."
        )


def check_finite(network: torch.nn.Module) -> None:
    """Raise UserError if a weight is not a finite number."""
    for name, tensor in network.state_dict().items():
        is_number = tensor.is_floating_point() and tensor.numel()
        # Both extremes of NaN are NaN. Checking each number takes fifteen times as long.
        if is_number and not all(
            extreme.isfinite() for extreme in tensor.aminmax()
        ):
            raise UserError(
                f"its weights {name} are not finite numbers; take another copy, or train again."
            )


# --- with a classifier ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """What the classifier of a model says of itself."""

    classnames: Annotated[list[str], Field(min_length=1)]
    class_templates: ClassTemplates
    # Widths of the features of image encoders that stand beside CLIP's.
    encoder_widths: list[PositiveInt] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FinetunedModel(Description):
    """A CLIP model with its classifier."""

    folder: Path
    clip: Clip
    classifier: Classifier  # classifier of the model's C classes, on the CPU

    @property
    def logit_scale(self) -> float:
        """The exponential of the model's parameter: the factor of cosines in a softmax."""
        return self.clip.model.logit_scale.exp().item()  # type: ignore[operator]


def save_finetuned(
    clip: Clip,
    classifier: Classifier,
    classnames: list[str],
    class_templates: ClassTemplates,
    folder: Path,
) -> None:
    """Write a new folder that stock open_clip loads by `local-dir:`, with a classifier."""
    clip.save(folder)
    described = {
        "classnames": classnames,
        "class_templates": vars(class_templates),
    }
    save_classifier(folder / CLASSIFIER, classifier, described)


def load_finetuned(
    model: str | Path, device: torch.device, precision: str = "bf16"
) -> FinetunedModel:
    """Load a model with a classifier from the folder that `find_model` finds.

    UserError: it is no such model, or a file is broken.
    """
    folder = find_model(model)
    clip = load(f"{FOLDER}{folder}", None, device, precision)
    path = folder / CLASSIFIER
    classifier, values = load_classifier(path)
    described = clip_config.known_values(Description, values, str(path))
    width = clip.width + sum(described.encoder_widths)
    shape = (len({*described.classnames}), width)
    numbers = torch.cat([classifier.weights.flatten(), classifier.bias.flatten()])
    has_shapes = (
        classifier.weights.shape == shape and classifier.bias.shape == shape[:1]
    )
    if not has_shapes or not numbers.isfinite().all():
        raise UserError(
            f"{path} is no classifier of finite numbers, with a name for each class, of the width "
            f"{width} of the model beside it; put the files of one training together."
        )
    return FinetunedModel(
        **vars(described), folder=folder, clip=clip, classifier=classifier
    )
