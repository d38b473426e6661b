"""Image and group descriptions from a multimodal model (LatteCLIP, section 3.2).

Every answer goes to a store as it comes, under the digest of its request; the table is made from
the store at the end. So a broken run goes on where it stopped, and what was asked once is not asked
again, whatever else changes.

Letters: N training images, R rows of a table (images or groups).
"""

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from latteclip.captions import request
from latteclip.captions.answers import AnswerStore
from latteclip.captions.ask import Asking, Outcome, Questions
from latteclip.captions.engines import base as captioners
from latteclip.captions.engines.base import CaptionerSettings
from latteclip.captions.engines.file import read_captions
from latteclip.captions.groups import GROUP_SIZE, draw_groups
from latteclip.captions.request import Layout
from latteclip.captions.shard import WHOLE, Shard
from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.core.files import digest
from latteclip.core.prompts import PLACE, fill
from latteclip.core.signals import ending_in_order
from latteclip.core.version import __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupSettings:
    """How groups are drawn and laid out."""

    seed: int
    canvas: int  # side of the square picture, pixels
    gap: int  # between its cells, pixels
    layout: str = "grid"  # or multi_image: the four as pictures of their own
    groups_per_class: int | None = None  # null: one for every image


@dataclass(frozen=True)
class Job:
    """How a table of captions is made."""

    settings: CaptionerSettings
    output: str
    store: str | None  # folder of the kept answers; None keeps them for this run alone
    threads: int
    shard: Shard = WHOLE


def caption_images(images_path: str, pseudo_labels_path: str | None, prompt: str, job: Job) -> None:
    """Write a caption for every image that is not in the test split.

    Args:
        pseudo_labels_path: needed where the prompt has a place for the pseudo-label.
    """
    captioners.check(job.settings)
    questions = image_questions(images_path, pseudo_labels_path, prompt, job)
    _caption(questions, prompt, {}, job, job.settings.images_file)


def image_questions(
    images_path: str, pseudo_labels_path: str | None, prompt: str, job: Job
) -> Questions:
    """What a job asks about images; see `caption_images`."""
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    rows = [i for i, name in enumerate(image_ids) if job.shard.holds(name)]
    return Questions(
        ids=[image_ids[i] for i in rows],
        members=np.array(rows, np.int64).reshape(-1, 1),
        image_ids=table["image_id"],
        paths=table["path"],
        labels=None,
        prompts=_prompts(prompt, classnames, pseudo_labels_path, image_ids, rows),
        layout=Layout(max_side=job.settings.max_image_side),
    )


def caption_groups(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupSettings,
    job: Job,
) -> None:
    """Draw groups of the images that are not in the test split and write their captions."""
    captioners.check(job.settings)
    questions = group_questions(images_path, pseudo_labels_path, prompt, groups, job)
    _caption(questions, prompt, {"groups": asdict(groups)}, job, job.settings.groups_file)


def group_questions(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupSettings,
    job: Job,
) -> Questions:
    """What a job asks about groups; see `caption_groups`."""
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    labels = _pseudo_labels(pseudo_labels_path, image_ids)
    # Drawn over the whole dataset in every shard, so that shards agree.
    drawn = draw_groups(image_ids, labels, groups.seed, groups.groups_per_class)
    rows = [i for i in drawn if job.shard.holds(image_ids[i])]
    return Questions(
        ids=[image_ids[i] for i in rows],
        members=np.array([drawn[i] for i in rows], np.int64).reshape(-1, GROUP_SIZE),
        image_ids=table["image_id"],
        paths=table["path"],
        labels=[labels[i] for i in rows],
        prompts=_prompts(prompt, classnames, pseudo_labels_path, image_ids, rows),
        layout=layout_of(groups, job.settings.max_image_side),
    )


def layout_of(groups: GroupSettings, max_side: int | None) -> Layout:
    """How the four images of a group are shown."""
    if groups.layout == "grid":
        return Layout("grid", groups.canvas, groups.gap)
    return Layout(groups.layout, max_side=max_side)


def _prompts(
    prompt: str,
    classnames: Sequence[str],
    pseudo_labels_path: str | None,
    image_ids: Sequence[str],
    rows: Sequence[int],
) -> Callable[[int], str]:
    """The prompt of a row, its place for the pseudo-label filled."""
    if PLACE not in prompt:
        return lambda row: prompt
    if pseudo_labels_path is None:
        raise UserError(f"Prompt {prompt!r} names the pseudo-label; give --pseudo-labels.")
    labels = _pseudo_labels(pseudo_labels_path, image_ids)
    filled = [fill(prompt, classname) for classname in classnames]
    return lambda row: filled[labels[rows[row]]]


def _pseudo_labels(path: str, image_ids: Sequence[str]) -> list[int]:
    return tables.lookup(path, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids)


def _caption(
    questions: Questions,
    prompt: str,
    provenance: dict[str, Any],
    job: Job,
    own_file: str | None,
) -> None:
    """Find out every answer, ask for those that are not held, and write CAPTIONS."""
    settings = job.settings
    about = {"prompt": prompt, "captioner": asdict(settings), **provenance}
    if settings.engine == "file":
        own = read_captions(own_file, "images" if questions.labels is None else "groups")
        _write(questions, lambda row: _own(own.get(questions.ids[row])), about, job)
        return
    kept = f"The captions so far are kept in {job.store}: rerun to go on."
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_in_order(kept if job.store else "Without --store, all is lost."))
        folder = job.store or stack.enter_context(tempfile.TemporaryDirectory())
        store = stack.enter_context(AnswerStore(folder))
        asking = Asking(questions, settings, store, job.threads)
        asking.ask()
        _write(questions, asking.outcome, about, job)


def _own(caption: str | None) -> Outcome:
    """A caption that the user brought along, as it is."""
    if caption is None:
        return Outcome("", "error", None, 1, "the file has no caption of it", None, "file", None)
    return Outcome(" ".join(caption.split()), "stop", None, 1, None, None, "file", None)


def _write(
    questions: Questions, outcomes: Callable[[int], Outcome], about: dict[str, Any], job: Job
) -> None:
    """Write CAPTIONS, a piece at a time; read each answer twice and hold none."""
    count = Counter[str]()
    engines: set[str] = set()
    last_date, first_error = "", ""
    for row in range(len(questions)):
        outcome = outcomes(row)
        engines.add(outcome.engine)
        last_date = max(last_date, outcome.date or "")
        first_error = first_error or outcome.error or ""
        count["failed"] += outcome.error is not None
        count["empty"] += outcome.error is None and not outcome.caption
        count["cut"] += outcome.finish_reason == "length"
    _check(len(questions), count, first_error, job.settings)
    metadata = {
        **about,
        "engine": ", ".join(sorted(engines - {""})),
        "date": last_date or None,
        "code": code_version(),
        "retry_prompt": request.AGAIN,
    }
    with tables.writing(job.output, tables.CAPTIONS, metadata) as add:
        for start in range(0, max(1, len(questions)), tables.CAPTION_ROWS):
            rows = range(start, min(start + tables.CAPTION_ROWS, len(questions)))
            add(_columns(questions, rows, [outcomes(row) for row in rows]))
    log.info(
        "Wrote %d captions, %d empty, %d without an answer, %d cut at %d tokens.",
        len(questions),
        count["empty"],
        count["failed"],
        count["cut"],
        job.settings.max_new_tokens,
    )


def _check(n: int, count: Mapping[str, int], error: str, settings: CaptionerSettings) -> None:
    if count["empty"] + count["failed"] > settings.max_failed * n:
        if settings.engine == "file":
            first = f" (the first: {error})" if error else ""
            raise UserError(
                f"Your file lacks the captions of {count['empty'] + count['failed']} of {n} images "
                f"or groups{first}, more than captioner.max_failed "
                f"({settings.max_failed:.0%}); see captioner.images_file and captioner.groups_file."
            )
        reason = f" (the first error: {error})" if error else ""
        raise UserError(
            f"{settings.model} wrote nothing for {count['empty']} of {n} pictures and did not "
            f"answer for {count['failed']}{reason}, more than captioner.max_failed "
            f"({settings.max_failed:.0%}); try another prompt or captioner.model, or rerun: what "
            "was answered is not asked again."
        )


def _columns(
    questions: Questions, rows: Sequence[int], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    ids = questions.image_ids
    return {
        "id": [questions.ids[row] for row in rows],
        "members": [[ids[int(i)].as_py() for i in questions.members[row]] for row in rows],
        "pseudo_label": pa.array(
            [None if questions.labels is None else questions.labels[row] for row in rows],
            pa.int32(),
        ),
        "prompt": [questions.prompts(row) for row in rows],
        "caption": [outcome.caption for outcome in outcomes],
        "finish_reason": [outcome.finish_reason for outcome in outcomes],
        "n_tokens": pa.array([outcome.n_tokens for outcome in outcomes], pa.int32()),
        "attempts": pa.array([outcome.attempts for outcome in outcomes], pa.int8()),
        "error": pa.array([outcome.error for outcome in outcomes], pa.string()),
        "digest": pa.array([outcome.digest for outcome in outcomes], pa.string()),
    }


def code_version() -> str:
    """The package's version and a digest of its code."""
    folder = Path(__file__).parent
    parts: list[str | bytes] = []
    for path in sorted(folder.glob("*.py")):
        parts += [path.name, path.read_bytes()]
    return f"latteclip {__version__} ({digest(*parts)[:12]})"
