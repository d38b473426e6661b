"""What a rehearsal is of, and what its parts have in common."""

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latteclip.config import layers, model_names
from latteclip.config.configuration import Configuration
from latteclip.config.rule_inputs import MODEL_NOTE
from latteclip.core.errors import UserError
from latteclip.core.settings import from_values
from latteclip.data import download_models

log = logging.getLogger(__name__)
RESULT, ERROR = "result.json", "error"  # file that a part writes; its key where it failed


@dataclass(frozen=True)
class Job:
    """What is rehearsed."""

    dataset: str  # whose models and settings
    device: str  # cuda or cpu
    given: dict[str, Any] = field(default_factory=dict)  # over the configuration's files
    stands_in: bool = False  # for what is configured; then no file of the folder counts
    options: str = ""  # of the command line, as a shell reads them

    def configuration(self) -> Configuration:
        """The one that the job is of."""
        project = None if self.stands_in else layers.PROJECT
        return Configuration(layers.defaults(project), self.given)


def trained_method(configuration: Configuration) -> str | None:
    """The method whose training is rehearsed: LatteCLIP's objective, the dearest, comes first."""
    trained = [name for name in configuration.methods if configuration.is_trained(name)]
    return max(trained, key=lambda name: configuration.objective(name) == "latteclip", default=None)


def threads_of(stage: str, configuration: Configuration, job: Job) -> int:
    """CPU threads of a stage."""
    wanted = int(configuration.section("threads", job.dataset)[stage])
    return min(wanted, len(os.sched_getaffinity(0)))


def hold(section: str, configuration: Configuration, job: Job, folder: Path) -> int | None:
    """See that the cache has the model of a section; its bytes there, None for one of a folder.

    Raises:
        UserError: it has not; says which command fetches it.
    """
    names = configuration.hub_model(section, job.dataset)
    if names is None:
        return None
    note = folder / "note.json"
    try:  # as the stage that fetches it, which finds all of it in the cache
        if section == "clip":
            settings = from_values(download_models.HubClip, names)
            download_models.download_clip(settings, str(note))
        else:
            wanted = from_values(download_models.HubCaptioner, names)
            download_models.download_captioner(wanted, str(note))
    except UserError as error:
        log.info("%s", error)
        fetch = f"latteclip workflow -j1 {MODEL_NOTE.format(model=model_names.slug(names))}"
        raise UserError(
            f"The cache lacks {names['model']}, or a part of it, and a rehearsal downloads "
            f"nothing; fetch it with: {fetch} {job.options}".rstrip()
        ) from None
    repos = json.loads(note.read_bytes())["repos"]
    return sum(int(size) for repo in repos for size in repo["files"].values())
