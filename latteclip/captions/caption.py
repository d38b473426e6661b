"""Image and group descriptions from a multimodal model (LatteCLIP, section 3.2).

Every answer goes to a store as it comes, under the digest of its request; the table is made from
the store at the end. So a broken run goes on where it stopped, and what was asked once is not asked
again, whatever else changes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from latteclip.captions.answers import RowOutcome
from latteclip.captions.ask_captions import CaptionAsking
from latteclip.captions.engines import start as engines
from latteclip.captions.engines.base import OWN
from latteclip.captions.requests import (
    GroupSettings,
    Questions,
    group_questions,
    image_questions,
)
from latteclip.captions.runner import CaptionJob
from latteclip.captions.write import write_captions


def caption_images(
    images_path: str, pseudo_labels_path: str | None, prompt: str, job: CaptionJob
) -> None:
    """Write a caption for every image that is not in the test split.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: needed where the prompt has a place for the pseudo-label.
        prompt: what is asked about each image.
        job: of whom, and where the captions go.

    Raises:
        UserError: the engine does not start, or too many captions are missing.
    """
    engines.check(job.settings)
    layout = job.settings.layout
    questions = image_questions(images_path, pseudo_labels_path, prompt, job.shard, layout)
    _caption(questions, job, {"prompt": prompt, "captioner": asdict(job.settings)})


def caption_groups(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupSettings,
    job: CaptionJob,
) -> None:
    """Draw groups of the images that are not in the test split and write their captions.

    See `caption_images`.
    """
    engines.check(job.settings)
    questions = group_questions(
        images_path, pseudo_labels_path, prompt, groups, job.shard, job.settings.layout
    )
    about = {"prompt": prompt, "captioner": asdict(job.settings), "groups": asdict(groups)}
    _caption(questions, job, about)


def _caption(questions: Questions, job: CaptionJob, about: Mapping[str, Any]) -> None:
    """Find out what becomes of each row, and write it."""
    with _outcomes(questions, job) as outcomes:
        write_captions(questions, outcomes, job.settings, about, job.output)


@contextlib.contextmanager
def _outcomes(questions: Questions, job: CaptionJob) -> Iterator[Callable[[int], RowOutcome]]:
    """What becomes of a row: read from the user's own file, or asked for unless it is held."""
    if job.settings.engine == OWN:
        own = engines.own_captions(job.settings, grouped=questions.labels is not None)
        yield lambda row: own(questions.ids[row])
        return
    with job.keeping("captions") as store:
        asking = CaptionAsking(questions, job.settings, store, job.threads)
        asking.ask()
        yield asking.outcome
