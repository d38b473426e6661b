"""Image and group descriptions from a multimodal model (LatteCLIP, section 3.2).

Every answer is cached as it comes, and the table is written at the end. So a broken run goes on
where it stopped, and a request is answered once.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latteclip.captions.groups import Questions, questions_about
from latteclip.captions.requests import CaptionerSettings, Response, failed, module_of
from latteclip.captions.runner import CaptionJob, Row, Runner, running, write_table
from latteclip.config.sections.groups import GroupsSection
from latteclip.core import tables

log = logging.getLogger(__name__)
# Added to the prompt of a second attempt, after an answer that was empty or cut.
RETRY_PROMPT = "Answer with one short sentence."
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_TOKENS = re.compile(r"<\|?/?(?:s|pad|unk|eos|bos|im_start|im_end|endoftext|eot_id)\|?>", re.I)
_OPENING = re.compile(
    r"^(?:(?:assistant|caption|description|answer)\s*:\s*"
    r"|(?:sure|certainly|of course|absolutely|okay|ok)\s*[!,.:]\s*(?=\S)"
    r"|here(?:['\u2019]s| is| are| it is)\b[^.!?\"\u201c]{0,100}?:\s*(?=\S))",
    re.I,
)
_QUOTES = [*((mark, mark) for mark in ('"', "'", "**", "*", "`")), "\u201c\u201d", "\u2018\u2019"]


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

    UserError: the engine does not start, or too many captions are missing.
    """
    job = CaptionJob(captioner, output, store, threads, shard, "captioner.images_file")
    questions = questions_about(
        images_path, pseudo_labels_path, prompt, captioner.picture_layout, shard
    )
    _caption(job, questions, prompt)


def caption_groups(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupsSection,
    captioner: CaptionerSettings,
    output: str,
    store: str | None = None,
    *,
    shard: str = "1/1",
    threads: int,
) -> None:
    """Draw groups of the images that are not in the test split and write their captions."""
    job = CaptionJob(captioner, output, store, threads, shard, "captioner.groups_file")
    single = captioner.picture_layout
    questions = questions_about(images_path, pseudo_labels_path, prompt, single, shard, groups)
    _caption(job, questions, prompt, groups=groups.model_dump())


def _caption(job: CaptionJob, questions: Questions, prompt: str, **metadata: Any) -> None:
    metadata |= {"prompt": prompt, "retry_prompt": RETRY_PROMPT}
    with _rows(job, questions) as row_of:
        count = write_table(job, len(questions), row_of, metadata)
    log.info(
        "Wrote %d captions, %d empty, %d without an answer, %d cut at %d tokens.",
        *(count["asked"], count["empty"], count["failed"], count["cut"]),
        job.settings.max_new_tokens,
    )


@contextlib.contextmanager
def _rows(job: CaptionJob, questions: Questions) -> Iterator[Callable[[int], Row]]:
    """Yield a function that returns a row, by the user's file or by an engine."""
    if job.settings.reads_file:
        path = getattr(job.settings, job.file_key.removeprefix("captioner."))
        found = module_of(job.settings.engine).read_captions(path, job.file_key)
        missing = failed("the file has no caption for it")
        yield lambda row: _row(questions, row, [found.get(questions.ids[row], missing)])
        return

    def question(row: int, attempt: int) -> tuple[str, None]:
        prompt = questions.prompts(row)
        return (prompt if attempt == 1 else f"{prompt} {RETRY_PROMPT}"), None

    def answers(runner: Runner, row: int) -> list[Response]:
        return [replace(answer, text=clean(answer.text)) for answer in runner.answers(row)]

    with running(job, questions, question) as runner:
        rows = range(len(questions))
        runner.ask(rows)
        first = ((row, answers(runner, row)[0]) for row in rows)
        again = [row for row, answer in first if answer.error is None and not _is_good(answer)]
        if again:
            log.info("%d answers are empty or cut.", len(again))
            runner.ask(again, attempt=2)
        yield lambda row: _row(questions, row, answers(runner, row))


def _is_good(answer: Response) -> bool:
    return answer.finish_reason != "length" and bool(answer.text)


def _row(questions: Questions, row: int, answers: Sequence[Response]) -> Row:
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


def gather_captions(images_path: str, shard_paths: Sequence[str], output: str) -> None:
    """Write the rows of all shards, of captions or of class scores, in the order of the index."""
    is_scores = "options" in pq.read_schema(shard_paths[0]).names
    schema = tables.CLASS_SCORES if is_scores else tables.CAPTIONS
    parts, metadata = zip(*(tables.read(path, schema) for path in shard_paths), strict=True)
    rows = pa.concat_tables(parts)
    index, _ = tables.read_unlabelled(images_path, training=True)
    # Not every image has a group.
    order = pc.index_in(index["image_id"], rows[schema.names[0]]).combine_chunks().drop_null()
    with tables.writing(output, schema, _joined(metadata)) as add:
        for start in range(0, max(1, len(order)), tables.CAPTION_ROWS):
            piece = rows.take(order[start : start + tables.CAPTION_ROWS]).combine_chunks()
            add({name: piece[name] for name in schema.names})


def _joined(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    engines = {name for shard in shards for name in shard["engine"].split(", ") if name}
    return {
        **shards[0],
        "engine": ", ".join(sorted(engines)),
        "date": max(shard["date"] or "" for shard in shards) or None,
        **{key: sum(s[key] for s in shards) for key in ("tokens_read", "tokens_written")},
    }


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
    text = _OPENING.sub("", text)
    for left, right in _QUOTES:
        inner = text[len(left) : len(text) - len(right)]
        if text == left + inner + right and left not in inner and right not in inner:
            return inner.strip()
    return text
