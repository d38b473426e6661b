"""Which engines there are, and how one is started.

An engine is a module of this folder with a class in it. The module is imported by its name: an edit
of it reruns the captions that this engine wrote, and no other.
"""

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latteclip.captions import processors
from latteclip.captions.answers import RowOutcome
from latteclip.captions.engines.base import OWN, Captioner, CaptionerSettings, Count
from latteclip.config import hub_names
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)
CLASSES = {
    "vllm": "VllmCaptioner",
    "openai": "OpenaiCaptioner",
    "transformers": "TransformersCaptioner",
    OWN: "OwnCaptions",
}


def start(settings: CaptionerSettings, threads: int, pictures: int) -> Captioner:
    """Start the engine that the settings name.

    Args:
        settings: of the captioner.
        threads: CPU threads of this job.
        pictures: the most that one request shows.

    Raises:
        UserError: a model that is not there, or an engine that does not start.
    """
    captioner: Captioner = _class_of(settings.engine)(settings, threads, pictures)
    return captioner


def counter(settings: CaptionerSettings, max_new_tokens: int) -> Count | None:
    """What counts the tokens of requests before the engine starts.

    Args:
        settings: of the captioner.
        max_new_tokens: of an answer.

    Returns:
        None where nobody knows: vLLM may read a model whose processor transformers does not.

    Raises:
        UserError: transformers does not know the model, or the server does not answer.
    """
    if not loads_model(settings.engine):
        count: Count = _class_of(settings.engine)(settings).count
        return count
    try:
        return processors.TokenCounter(settings, max_new_tokens)
    except UserError as error:
        if settings.engine == "transformers":
            raise
        log.info("Tokens are not counted in advance: %s", error)
        return None


def special_tokens(settings: CaptionerSettings) -> str | None:
    """Return the rule for special tokens as a part of what is asked; None: a server has its own."""
    if not loads_model(settings.engine):
        return None
    return processors.special_tokens(settings.model, settings.revision)


def own_captions(settings: CaptionerSettings, *, grouped: bool) -> Callable[[str], RowOutcome]:
    """The captions that the user brings along, of images or of groups, by the id of a row.

    Raises:
        UserError: no such file, or another form.
    """
    own: Callable[[str], RowOutcome] = _class_of(OWN)(settings, grouped=grouped)
    return own


def _class_of(engine: str) -> Any:
    module = importlib.import_module(f"latteclip.captions.engines.{engine}")
    return getattr(module, CLASSES[engine])


def loads_model(engine: str) -> bool:
    """Whether an engine loads the model itself; a server is sent pictures as URLs."""
    return engine in hub_names.ENGINES


def check(settings: CaptionerSettings) -> None:
    """Refuse, before anything is read, an engine or a model folder that is not there."""
    if settings.engine not in CLASSES:
        raise UserError(f"captioner.engine {settings.engine!r} is not one of {', '.join(CLASSES)}.")
    if not loads_model(settings.engine) or not hub_names.is_folder(settings.model):
        return
    if not (Path(settings.model) / "config.json").is_file():
        raise UserError(
            f"Captioner model folder {settings.model} has no config.json; "
            "set captioner.model to a model folder or a Hugging Face id."
        )
