"""Names of models: of the Hugging Face hub, or of a folder or file on this machine."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

HUB = "hf-hub:"
FOLDER = "local-dir:"
# Prefixes of open_clip's names that give architecture and weights in one.
WHOLE = (HUB, FOLDER)
# Prefix of a CLIP that one key names, with architecture and weights: <model>/<pretrained>.
OPEN_CLIP = "open_clip:"

# The keys of a section that name its model.
Names = dict[str, str | None]


@dataclass(frozen=True)
class ModelSource:
    """A model of the hub, by the keys that name it, or of a folder or file on this machine."""

    kind: str  # as in `download_models.HubModel`
    names: Names | None = None
    path: str | None = None

    @property
    def settings(self) -> Names:
        """The settings of download_model."""
        return {"kind": self.kind, **(self.names or {})}


def clip_model(model: str, pretrained: str | None) -> ModelSource:
    """Return a CLIP by two keys of its section."""
    if pretrained and os.path.isfile(pretrained):
        return ModelSource("clip", path=pretrained)
    if not model.startswith(WHOLE):
        model = model.replace("/", "-")  # ViT-B/32 is ViT-B-32
    return _model("clip", model, pretrained=pretrained)


def captioner_model(model: str, revision: str | None) -> ModelSource:
    """Return a captioner by two keys of its section."""
    if os.path.isdir(model):
        return ModelSource("captioner", path=model)
    return _model("captioner", model, revision=revision)


def encoder_models(names: Iterable[str]) -> list[ModelSource]:
    """Return image encoders beside CLIP by their names."""
    return [_model("image_encoder", name) for name in names]


def _model(kind: str, name: str, **others: str | None) -> ModelSource:
    if name.startswith(FOLDER):
        return ModelSource(kind, path=name.removeprefix(FOLDER))
    return ModelSource(kind, {"model": name, **others})


def slug(names: Names) -> str:
    """Return names as a part of a file's name."""
    return "@".join(
        re.sub(r"[^\w.-]+", "--", name) for name in names.values() if name
    )
