"""Image and group descriptions from a multimodal model (LatteCLIP, section 3.2).

Every answer goes to a cache as it comes, from which the table is made at the end. So a broken run
goes on where it stopped, and a request is answered once.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from latteclip.captions.engines import base as engines
from latteclip.captions.engines.base import FILE, CaptionerSettings
from latteclip.captions.requests import (
    RETRY_PROMPT,
    Answer,
    GroupSettings,
    Questions,
    failed,
    questions_about,
)
from latteclip.captions.runner import CaptionJob, Row, running, write_table
from latteclip.core import tables

log = logging.getLogger(__name__)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_TOKENS = re.compile(r"<\|?/?(?:s|pad|unk|eos|bos|im_start|im_end|endoftext|eot_id)\|?>", re.I)
_LABEL = re.compile(r"^(?:assistant|caption|description|answer)\s*:\s*", re.I)
_CONSENT = re.compile(r"^(?:sure|certainly|of course|absolutely|okay|ok)\s*[!,.:]\s*(?=\S)", re.I)
_PREFACE = re.compile(
    r"^here(?:['\u2019]s| is| are| it is)\b[^.!?\"\u201c]{0,100}?:\s*(?=\S)", re.I
)
_CURLY = (("\u201c", "\u201d"), ("\u2018", "\u2019"))
_QUOTES = (*((mark, mark) for mark in ('"', "'", "**", "*", "`")), *_CURLY)


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

    Raises:
        UserError: the engine does not start, or too many captions are missing.
    """
    job = CaptionJob(captioner, output, store, threads, shard)
    _caption(job, images_path, pseudo_labels_path, prompt)


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

    Raises:
        UserError: as of `caption_images`.
    """
    job = CaptionJob(captioner, output, store, threads, shard)
    _caption(job, images_path, pseudo_labels_path, prompt, groups)


def _caption(
    job: CaptionJob,
    images_path: str,
    pseudo_labels_path: str | None,
    prompt: str,
    groups: GroupSettings | None = None,
) -> None:
    questions = questions_about(
        images_path, pseudo_labels_path, prompt, job.settings.layout, job.shard, groups
    )
    metadata: dict[str, Any] = {"prompt": prompt, "retry_prompt": RETRY_PROMPT}
    if groups:
        metadata["groups"] = asdict(groups)
    n, file_key = len(questions), "groups_file" if groups else "images_file"
    with _answers(job, questions, file_key) as answers_of:
        count = write_table(
            job,
            tables.CAPTIONS,
            n,
            lambda row: _row(questions, row, answers_of(row)),
            f"captioner.{file_key}",
            metadata,
        )
    log.info(
        "Wrote %d captions, %d empty, %d without an answer, %d cut at %d tokens.",
        *(n, count["empty"], count["failed"], count["cut"], job.settings.max_new_tokens),
    )


@contextlib.contextmanager
def _answers(
    job: CaptionJob, questions: Questions, file_key: str
) -> Iterator[Callable[[int], list[Answer]]]:
    """Yield a function that returns the answers about a row, from the user's file or an engine."""
    if job.settings.engine == FILE:
        path = getattr(job.settings, file_key)
        texts = engines.module_of(FILE).read_captions(path, f"captioner.{file_key}")
        yield lambda row: [_of_file(texts.get(questions.ids[row]))]
        return

    def question(row: int, attempt: int) -> tuple[str, None]:
        prompt = questions.prompts(row)
        return (prompt if attempt == 1 else f"{prompt} {RETRY_PROMPT}"), None

    with running(job, questions, question) as runner:
        rows = range(len(questions))
        runner.ask(rows)
        again = [row for row in rows if _wants_another(runner.answers(row)[0])]
        if again:
            log.info("%d answers are empty or cut.", len(again))
            runner.ask(again, attempt=2)
        yield lambda row: [replace(a, text=clean(a.text)) for a in runner.answers(row)]


def _of_file(text: str | None) -> Answer:
    if text is None:
        return failed("the file has no caption for it")
    return Answer(text, "stop", None, engine=FILE)


def _wants_another(answer: Answer) -> bool:
    return answer.error is None and not _is_good(answer)


def _is_good(answer: Answer) -> bool:
    return answer.finish_reason != "length" and bool(clean(answer.text))


def _row(questions: Questions, row: int, answers: Sequence[Answer]) -> Row:
    """Return the columns of a row, with its first good answer or the first that has a text."""
    good = [answer for answer in answers if _is_good(answer)]
    best, *_ = good or [answer for answer in answers if answer.text] or answers[-1:]
    columns = {
        "id": questions.ids[row],
        "members": [questions.image_ids[int(i)].as_py() for i in questions.members[row]],
        "pseudo_label": None if questions.labels is None else questions.labels[row],
        "prompt": questions.prompts(row),
        "caption": best.text,
        "finish_reason": best.finish_reason,
        "n_tokens": best.n_tokens,
        "attempts": len(answers),
        "error": best.error,
        "digest": answers[0].digest,
    }
    return columns, answers


def clean(text: str) -> str:
    """Return the caption in a model's answer; it may be empty.

    White space and control characters become single spaces. Half a character at the end, special
    tokens, a leading label ("Caption:"), a leading preface ("Sure, here is a description:") and
    quotes or asterisks around the whole go, until none is left.
    """
    text = " ".join(_TOKENS.sub(" ", _CONTROL.sub(" ", text)).rstrip("\ufffd").split())
    while (shorter := _strip_once(text)) != text:
        text = shorter
    return text


def _strip_once(text: str) -> str:
    for rule in (_LABEL, _CONSENT, _PREFACE):
        text = rule.sub("", text)
    for left, right in _QUOTES:
        inner = text[len(left) : len(text) - len(right)]
        if text == left + inner + right and left not in inner and right not in inner:
            return inner.strip()
    return text
