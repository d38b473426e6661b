"""The part of a rehearsal with the captioner: whether it starts, and how fast it writes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latteclip.captions.engines import start as engines
from latteclip.captions.engines.base import Captioner, CaptionerSettings
from latteclip.captions.groups import GROUP_SIZE
from latteclip.captions.prepare import Preparer, Task
from latteclip.captions.request import Layout, Request
from latteclip.cli.rehearsal import made
from latteclip.cli.rehearsal.job import Job, hold, threads_of
from latteclip.config import rule_settings
from latteclip.config.configuration import Configuration
from latteclip.core.errors import UserError
from latteclip.core.prompts import fill
from latteclip.core.settings import from_values

PAIR, MANY, ROUND_SECONDS = 2, 64, 30.0  # captions of the two rounds; time for the second


def captioner(job: Job, folder: Path) -> dict[str, Any]:
    """How long the engine takes to start, and the captions per second that it then writes."""
    configuration = job.configuration()
    settings = from_values(
        CaptionerSettings, rule_settings.captioner(configuration, job.dataset), "captioner"
    )
    engines.check(settings)
    held = hold("captioner", configuration, job, folder)
    requests = _requests(configuration, settings, job, folder)
    began = time.monotonic()
    engine = engines.start(
        settings, threads_of("caption", configuration, job), _pictures_of_group(configuration, job)
    )
    start = time.monotonic() - began
    seconds, caption = _ask(engine, requests[:PAIR], settings.model)
    n = PAIR
    room = min(len(requests), settings.batch_size, int(PAIR * ROUND_SECONDS / seconds))
    if room > n:
        n = room
        seconds, _ = _ask(engine, requests[:n], settings.model)
    text = (
        f"{engine.version} starts in {start:.0f} s; {n} questions at once: {n / seconds:.1f} "
        f"captions per second, such as {caption!r}"
    )
    return {"text": text, "start": start, "rate": n / seconds, "held": held}


def _requests(
    configuration: Configuration, settings: CaptionerSettings, job: Job, folder: Path
) -> list[Request]:
    """Questions about images, as the stage asks them."""
    prompt = fill(rule_settings.prompt(configuration, job.dataset, "image"), "object")
    identity = settings.identity(Layout(max_side=settings.max_image_side))
    as_urls = not engines.loads_model(settings.engine)
    prepare = Preparer(identity, as_urls, held=())
    paths = made.pictures(configuration, job.dataset, folder / "pictures", MANY)
    prepared = [prepare(Task(key, [path], prompt)) for key, path in enumerate(paths)]
    return [Request(one.task.key, one.pictures or (), prompt) for one in prepared]


def _pictures_of_group(configuration: Configuration, job: Job) -> int:
    """The most pictures that one request of the stages shows."""
    several = configuration.section("groups", job.dataset)["layout"] == "multi_image"
    grouped = "group" in configuration.caption_kinds(job.dataset)
    return GROUP_SIZE if several and grouped else 1


def _ask(engine: Captioner, requests: Sequence[Request], model: str) -> tuple[float, str]:
    """Seconds until all are answered, and the last answer."""
    began, text = time.monotonic(), ""
    for _, answer in engine.answer(requests):
        if answer.error is not None:
            raise UserError(f"{model} does not answer: {answer.error.rstrip('.')}")
        text = answer.text
    return time.monotonic() - began, " ".join(text.split())
