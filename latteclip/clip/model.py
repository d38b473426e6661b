"""Load and save CLIP models of open_clip."""

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import v2

from latteclip.clip import clip_config
from latteclip.clip.classifier import Classifier, save_classifier
from latteclip.config.registry import CLIP_CONFIG, TEXT_TOWER
from latteclip.core import devices
from latteclip.core.class_templates import ClassTemplates
from latteclip.core.errors import UserError, first_line
from latteclip.core.files import write_json

log = logging.getLogger(__name__)
CLASSIFIER = "prototypes.safetensors"
Transform = Callable[[Image.Image], torch.Tensor]
AT_ONCE = 32  # images that a CPU encodes at once: more need memory and are no faster


@dataclass
class Clip:
    """A CLIP model with its tokenizer and transform."""

    model: torch.nn.Module
    get_tokenizer: Callable[[], Any]  # slow, and not every stage has texts
    preprocess: Transform  # evaluation transform
    config: dict[str, Any]  # open_clip's model_cfg
    device: torch.device
    precision: str = "bf16"  # precision of both towers on CUDA, one of devices.PRECISIONS
    micro_batch: int | None = None  # images or texts encoded at once with gradients
    at_once: int | None = None  # the same without gradients, None: all of a batch
    text_tower: dict[str, Any] | None = None  # configuration of one of transformers

    def __post_init__(self) -> None:
        if self.at_once is None and self.device.type != "cuda":
            self.at_once = AT_ONCE

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
    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [3, 1, 1] of the colours, on the device."""
        last = self.preprocess.transforms[-1]  # type: ignore[attr-defined]
        both = torch.stack([torch.as_tensor(last.mean), torch.as_tensor(last.std)])
        mean, std = devices.send(both.float()[:, :, None, None], self.device)
        return mean, std

    @cached_property
    def tokenizer(self) -> Any:
        """Texts to tokens [T, L]."""
        return self.get_tokenizer()


def load(
    model: str, pretrained: str | None, device: torch.device, precision: str = "bf16"
) -> Clip:
    """Load weights in float32, in evaluation mode, without running code of a model.

    `model` is an open_clip name, `hf-hub:<repo>` or `local-dir:<folder>`, and `pretrained` an
    open_clip tag or a weights file, None with the two prefixes. A GPU encodes in the precision
    bf16, fp16 or float32, a CPU in float32.

    UserError: the model is missing or damaged, or the device lacks the precision. A damaged
    tokenizer raises it when it is first used.
    """
    devices.check_precision(device, precision)
    if not clip_config.is_foreign(model):
        model = model.replace("/", "-")  # ViT-B/32, as OpenAI writes it
    what = f"CLIP model {model!r} with pretrained {pretrained!r}"
    with loading(what, clip_config.REMEDY), tempfile.TemporaryDirectory() as folder:
        config = clip_config.read(model)
        tower = clip_config.text_tower(model, config)
        options: dict[str, Any] = {"pretrained_text": False}
        if tower is not None:  # open_clip reads its configuration from a folder
            write_json(Path(folder) / "config.json", tower)
            local = {"hf_model_name": folder, "hf_model_pretrained": False}
            options["text_cfg"] = {**config["text_cfg"], **local}
        if clip_config.is_foreign(model):  # its configuration may ask for more than it has
            build = partial(
                open_clip.create_model, model, load_weights=False, device="meta", **options
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
    check_finite(model, network)

    def tokenizer() -> Any:
        with loading(what, clip_config.REMEDY):
            return clip_config.tokenizer(model, config)

    return Clip(
        network.eval(), tokenizer, preprocess, config, device, precision, text_tower=tower
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
        raise UserError(f"{what} cannot be loaded ({reason}); {remedy}.") from error


def check_size(build: Callable[[], torch.nn.Module], files: Sequence[Path]) -> None:
    """Raise UserError if an untrusted network has more numbers than its files have bytes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that there are no weights
    try:
        with torch.device("meta"):  # takes no memory
            numbers = sum(tensor.numel() for tensor in build().state_dict().values())
    finally:
        logging.disable(before)
    size = sum(path.stat().st_size for path in files)
    if numbers > size:
        raise UserError(
            f"its network has {numbers} numbers, and its files have {size} bytes; "
            f"{clip_config.REMEDY}."
        )


def check_finite(model: str, network: torch.nn.Module) -> None:
    """Raise UserError if a weight is not a finite number."""
    for name, tensor in network.state_dict().items():
        is_number = tensor.is_floating_point() and tensor.numel()
        # Both extremes of NaN are NaN. Checking each number takes fifteen times as long.
        if is_number and not all(extreme.isfinite() for extreme in tensor.aminmax()):
            raise UserError(
                f"The weights {name} of model {model!r} are not finite numbers; take another copy, "
                "or train again."
            )


def save(
    clip: Clip,
    classifier: Classifier,
    classnames: list[str],
    class_templates: ClassTemplates | str,
    folder: Path,
) -> None:
    """Write a new folder that stock open_clip loads by `local-dir:`, with a classifier."""
    save_network(clip, folder)
    class_templates = (
        ClassTemplates.of(class_templates)
        if isinstance(class_templates, str)
        else class_templates
    )
    save_classifier(
        folder / CLASSIFIER,
        classifier,
        {"classnames": classnames, **class_templates.described},
    )


def save_network(clip: Clip, folder: Path) -> None:
    """Write a new folder that stock open_clip loads by `local-dir:`."""
    folder.mkdir(parents=True)
    model: Any = clip.model
    state = {  # copies: safetensors takes no shared memory
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / clip_config.WEIGHTS)
    config = {"model_cfg": clip.config, "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / CLIP_CONFIG).write_text(json.dumps(config, indent=2))
    if clip.text_tower is not None:
        write_json(folder / TEXT_TOWER / "config.json", clip.text_tower)
    if isinstance(clip.tokenizer, open_clip.tokenizer.HFTokenizer):
        clip.tokenizer.save_pretrained(folder)
