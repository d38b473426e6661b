"""Image and group descriptions from a multimodal model (LatteCLIP, section 3.2).

Every answer goes to a cache as it comes, under the digest of its request. The table is made from
the cache at the end. So a broken run goes on where it stopped, and a request is answered once,
whatever else changes.

Letters: R rows of the table.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from latteclip.captions.answer_cache import Answer
from latteclip.captions.engines import base as engines
from latteclip.captions.engines.base import FILE, CaptionerSettings
from latteclip.captions.requests import (
    RETRY_PROMPT,
    GroupSettings,
    Questions,
    Shard,
    group_questions,
    image_questions,
)
from latteclip.captions.runner import CaptionJob, Outcome, Runner, Tally, tokens_of, write_table
from latteclip.captions.text import clean
from latteclip.core import tables
from latteclip.core.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionOutcome(Outcome):
    """What became of a row of CAPTIONS."""

    caption: str = ""
    finish_reason: str = "error"
    n_tokens: int | None = None
    attempts: int = 1

    @property
    def states(self) -> tuple[str, ...]:
        """Return what is counted of the row, for the log and the check."""
        cut = ("cut",) if self.finish_reason == "length" else ()
        empty = ("empty",) if self.error is None and not self.caption else ()
        return (*super().states, *empty, *cut)


def caption_images(
    images_path: str,
    pseudo_labels_path: str | None,
    prompt: str,
    captioner: CaptionerSettings,
    output: str,
    store: str | None = None,
    *,
    shard: str = "1/1",
    threads: int,
) -> None:
    """Write a caption for every image that is not in the test split.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: needed where the prompt has a place for the pseudo-label.
        prompt: the question about each image.
        captioner: the settings of the captioner.
        output: the captions.
        store: folder of the answers that outlive this run. None: the answers are not cached.
        shard: which part of how many.
        threads: CPU threads.

    Raises:
        UserError: the engine does not start, or too many captions are missing.
    """
    job = CaptionJob(captioner, output, store, threads, Shard.parse(shard))
    engines.check(job.settings)
    layout = job.settings.layout
    questions = image_questions(images_path, pseudo_labels_path, prompt, job.shard, layout)
    _caption(questions, job, {"prompt": prompt})


def caption_groups(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupSettings,
    captioner: CaptionerSettings,
    output: str,
    store: str | None = None,
    *,
    shard: str = "1/1",
    threads: int,
) -> None:
    """Draw groups of the images that are not in the test split and write their captions.

    Args:
        images_path: an IMAGES table.
        pseudo_labels_path: a PSEUDO_LABELS table.
        prompt: the question about each group.
        groups: which images form a group.
        captioner: the settings of the captioner.
        output: the captions.
        store: folder of the answers that outlive this run. None: the answers are not cached.
        shard: which part of how many.
        threads: CPU threads.

    Raises:
        UserError: as of `caption_images`.
    """
    job = CaptionJob(captioner, output, store, threads, Shard.parse(shard))
    engines.check(job.settings)
    questions = group_questions(
        images_path, pseudo_labels_path, prompt, groups, job.shard, job.settings.layout
    )
    _caption(questions, job, {"prompt": prompt, "groups": asdict(groups)})


def _caption(questions: Questions, job: CaptionJob, metadata: Mapping[str, Any]) -> None:
    """Get the captions of R rows, and write them."""
    n, settings = len(questions), job.settings
    with _outcomes(questions, job) as outcomes:
        tally = write_table(
            job,
            tables.CAPTIONS,
            n,
            outcomes,
            functools.partial(_columns, questions),
            functools.partial(_check, n, settings),
            {**metadata, "retry_prompt": RETRY_PROMPT},
        )
    log.info(
        "Wrote %d captions, %d empty, %d without an answer, %d cut at %d tokens.",
        n,
        tally.count["empty"],
        tally.count["failed"],
        tally.count["cut"],
        settings.max_new_tokens,
    )


@contextlib.contextmanager
def _outcomes(questions: Questions, job: CaptionJob) -> Iterator[Callable[[int], CaptionOutcome]]:
    """Yield what becomes of a row: a caption of the user's file, or one of an engine."""
    settings = job.settings
    if settings.engine == FILE:
        kind = "images" if questions.labels is None else "groups"
        path = settings.images_file if questions.labels is None else settings.groups_file
        captions = engines.module_of(FILE).read_captions(path, kind)
        yield lambda row: _outcome_of_file(captions.get(questions.ids[row]))
        return

    def question(row: int, attempt: int) -> tuple[str, None]:
        prompt = questions.prompts(row)
        return (prompt if attempt == 1 else f"{prompt} {RETRY_PROMPT}"), None

    with job.cache("captions") as cache:
        with Runner(job, questions, cache, question, unit="captions") as runner:
            runner.ask(range(len(questions)))
            again = [row for row in range(len(questions)) if _wants_another(runner, row)]
            if again:
                log.info("%d answers are empty or cut.", len(again))
                runner.ask(again, attempt=2)
        yield functools.partial(_outcome, runner)


def _wants_another(runner: Runner, row: int) -> bool:
    first = runner.answer(row)
    return first is not None and not _is_good(first)


def _is_good(answer: Answer) -> bool:
    return answer.finish_reason != "length" and bool(clean(answer.text))


def _outcome(runner: Runner, row: int) -> CaptionOutcome:
    """Return a row's first good answer, or one that has a text."""
    first = runner.answer(row)
    if first is None:
        return CaptionOutcome(error=runner.error(row), digest=runner.digest(row))
    second = None if _is_good(first) else runner.answer(row, 2)
    best, answers = first, [first]
    if second is not None:
        answers = [first, second]
        best = second if _is_good(second) or not clean(first.text) else first
    read, written = tokens_of(*answers)
    return CaptionOutcome(
        digest=runner.digest(row),
        engine=best.engine,
        date=best.date,
        n_read=read,
        n_written=written,
        caption=clean(best.text),
        finish_reason=best.finish_reason,
        n_tokens=best.n_tokens,
        attempts=len(answers),
    )


def _outcome_of_file(text: str | None) -> CaptionOutcome:
    """Return a caption of the user's file as it is, except for white space."""
    if text is None:
        return CaptionOutcome(error="the file has no caption for it", engine=FILE)
    return CaptionOutcome(engine=FILE, caption=" ".join(text.split()), finish_reason="stop")


def _check(n: int, settings: CaptionerSettings, tally: Tally) -> None:
    """Raise UserError where too many of R rows have no caption."""
    empty, failed = tally.count["empty"], tally.count["failed"]
    if empty + failed <= settings.max_failed * n:
        return
    share = f"captioner.max_failed ({settings.max_failed:.0%})"
    first = f" (the first error: {tally.first_error})" if tally.first_error else ""
    if settings.engine == FILE:
        raise UserError(
            f"Your file lacks the captions of {empty + failed} of {n} images or groups{first}, "
            f"more than {share}; see captioner.images_file and captioner.groups_file."
        )
    raise UserError(
        f"{settings.model} wrote nothing for {empty} of {n} pictures and did not answer for "
        f"{failed}{first}, more than {share}; try another prompt or captioner.model, or rerun: "
        "only the requests without an answer are repeated."
    )


def _columns(questions: Questions, row: int) -> dict[str, Any]:
    """Return the columns of CAPTIONS that the question decides."""
    ids, labels = questions.image_ids, questions.labels
    return {
        "id": questions.ids[row],
        "members": [ids[int(i)].as_py() for i in questions.members[row]],
        "pseudo_label": None if labels is None else labels[row],
        "prompt": questions.prompts(row),
    }
