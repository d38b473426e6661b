"""Fetch models of the Hugging Face hub into its cache, where later jobs load them offline.

HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE in the environment apply, as to any program that
uses the hub. A small note has the commits in the cache: Snakemake sees the note, not the cache.
"""

import logging
from pathlib import Path
from typing import Literal

from latteclip.clip import clip_config, image_encoders
from latteclip.config.keys import Section
from latteclip.config.models import HUB
from latteclip.core.errors import UserError, first_line, full_disk
from latteclip.core.files import write_json

log = logging.getLogger(__name__)
WEIGHTS = ".safetensors"
# The files of a captioner that engines read. None runs when it is read: no pickle, no code.
CAPTIONER_FILES = [
    f"*{WEIGHTS}",
    "*.json",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
]
# Other formats of the same weights, and Mistral's second copy of them.
NOT_READ = ["*/*", "consolidated*"]


class HubModel(Section):
    """A model of the hub, by the keys of the section that names it."""

    kind: Literal["clip", "captioner", "image_encoder"]
    model: str
    pretrained: str | None = None
    revision: str | None = None


def download_model(settings: HubModel, output: str) -> None:
    """Fetch the files of a model that its stages read, and write the note on their commits.

    The note is the same when the same is fetched again, so that nothing reruns.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        repos = {repo: _commit(repo, settings) for repo in _fetch(settings)}
    except UserError:
        raise
    # Raised by open_clip, transformers, the hub's client or httpx.
    except Exception as error:
        if full_disk(error):
            raise
        raise UserError(
            f"The {settings.kind} {settings.model!r} cannot be fetched "
            f"({first_line(error).rstrip('.')}): check its name and the network (https_proxy, "
            "HF_ENDPOINT for a mirror), set HF_TOKEN for a private or gated model whose terms you "
            f"accepted, or set HF_HOME to a cache that has it (now {HF_HUB_CACHE})."
        ) from error
    write_json(output, {**settings.model_dump(exclude={"kind"}), "commits": repos})


def _fetch(settings: HubModel) -> list[str]:
    """Fetch weights, configuration and tokenizer of a model, and return their repos."""
    model = settings.model
    if settings.kind == "captioner":
        return _fetch_captioner(model, settings.revision)
    if settings.kind == "clip":
        return _fetch_clip(model, settings.pretrained)
    if names := image_encoders.open_clip_names(model):
        return _fetch_clip(*names)
    image_encoders.timm_model(model)
    return [image_encoders.repo(model)]


def _fetch_captioner(model: str, revision: str | None) -> list[str]:
    """Fetch weights, processor and chat template of a captioner, and return its repo."""
    from huggingface_hub import snapshot_download

    snapshot = snapshot_download(
        model,
        revision=revision,
        allow_patterns=CAPTIONER_FILES,
        ignore_patterns=NOT_READ,
    )
    if not any(Path(snapshot).glob(f"*{WEIGHTS}")):
        raise UserError(
            f"Captioner model {model!r} has no safetensors; set captioner.model to a repo "
            "with weights of this format."
        )
    return [model]


def _fetch_clip(model: str, pretrained: str | None) -> list[str]:
    """Fetch the files that open_clip asks the hub for, and return their repos."""
    import open_clip

    if model.startswith(HUB):
        config = clip_config.read(model)
        weights = model.removeprefix(HUB)
        clip_config.hub_file(model)
    else:
        config = open_clip.get_model_config(model)
        tag = open_clip.get_pretrained_cfg(model, pretrained or "")
        if config is None or not tag:
            raise UserError(
                f"open_clip lists no model {model!r} with the tag {pretrained!r}; set clip.model "
                "and clip.pretrained, or open_clip:<model>/<tag>, to a pair that it lists."
            )
        # <owner>/<name>/<file or nothing>.
        weights = tag["hf_hub"].rpartition("/")[0]
        open_clip.download_pretrained(tag)
    clip_config.tokenizer(model, config)
    # Whose weights are among those of the model.
    clip_config.text_tower(model, config)
    text = config["text_cfg"]
    repos = dict.fromkeys(
        [weights, text.get("hf_tokenizer_name"), text.get("hf_model_name")]
    )
    return [repo for repo in repos if repo and not Path(repo).is_dir()]


def _commit(repo: str, settings: HubModel) -> str:
    """Return the commit of a repo in the cache."""
    from huggingface_hub import snapshot_download

    snapshot = snapshot_download(
        repo,
        revision=settings.revision,
        ignore_patterns="*",
        local_files_only=True,
    )
    log.info("%s is in %s.", repo, snapshot)
    return Path(snapshot).name
