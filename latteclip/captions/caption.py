"""Image and group descriptions from a multimodal model (LatteCLIP, section 3.2).

Every answer is cached as it comes, and the table is written at the end. So a broken run goes on
where it stopped, and a request is answered once.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from latteclip.captions.answers import (
    CaptionsMetadata,
    Row,
    read_metadata,
    write_rows,
)
from latteclip.captions.engine import Response, failed, module_of, picture_layout
from latteclip.captions.questions import Files, Questions, Request, questions_about
from latteclip.captions.runner import Job, Runner, running
from latteclip.config.keys import CaptionerSection, GroupsSection
from latteclip.config.registry import ENGINES
from latteclip.core import tables
from latteclip.core.user_tables import by_image_id

# Added to the prompt of a second attempt, after an answer that was empty or cut.
RETRY_PROMPT = "Answer with one short sentence."
NOT_ASKED = Response("", "not asked", None)
WIDTH = 88  # characters of a line that `captions` shows
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_TOKENS = re.compile(
    r"<\|?/?(?:s|pad|unk|eos|bos|im_start|im_end|endoftext|eot_id)\|?>", re.I
)
_OPENING = re.compile(
    r"^(?:(?:assistant|caption|description|answer)\s*:\s*"
    r"|(?:sure|certainly|of course|absolutely|okay|ok)\s*[!,.:]\s*(?=\S)"
    r"|here(?:['\u2019]s| is| are| it is)\b[^.!?\"\u201c]{0,100}?:\s*(?=\S))",
    re.I,
)
_QUOTES = [
    *((mark, mark) for mark in ('"', "'", "**", "*", "`")),
    "\u201c\u201d",
    "\u2018\u2019",
]


def caption_images(
    images_path: str,
    pseudo_labels_path: str | None,
    prompt: str,
    captioner: CaptionerSection,
    output: str,
    store: str | None = None,
    *,
    classifier_path: str | None = None,
    answers_path: str | None = None,
    shard: str = "1/1",
    labeller: str = "",
    threads: int,
) -> None:
    """Write a caption for every image that is not in the test split, or for `max_images`.

    The classifier decides which images come first, and a person's answers which are left out.
    UserError: the engine does not start, or too many captions are missing.
    """
    files = Files(images_path, pseudo_labels_path, classifier_path, answers_path)
    _caption(files, prompt, None, Job(captioner, threads, store, shard, labeller), output)


def caption_groups(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupsSection,
    captioner: CaptionerSection,
    output: str,
    store: str | None = None,
    *,
    classifier_path: str | None = None,
    answers_path: str | None = None,
    shard: str = "1/1",
    threads: int,
) -> None:
    """Draw groups of the images that are not in the test split and write their captions.

    Of `max_images` groups, those of the images that `caption_images` would choose get captions.
    """
    files = Files(images_path, pseudo_labels_path, classifier_path, answers_path)
    _caption(files, prompt, groups, Job(captioner, threads, store, shard), output)


def _caption(
    files: Files, prompt: str, groups: GroupsSection | None, job: Job, output: str
) -> None:
    """Write the captions of images, or of groups of images."""
    captioner = job.captioner
    layout = picture_layout(captioner)
    most = captioner.max_images
    questions = questions_about(files, prompt, layout, job.shard, groups, most)
    metadata = CaptionsMetadata(prompt=prompt, layout=layout, groups=groups)
    if ENGINES[captioner.engine].reads_file:
        file = captioner.groups_file if groups else captioner.images_file
        key = f"captioner.{'groups' if groups else 'images'}_file"
        answers = _answers_of_file(captioner.engine, file, key, questions)
        write_rows(_rows(questions, answers), metadata, captioner, output, file)
        return
    with running(job, questions) as runner:
        _ask(runner, questions)
        rows = _rows(questions, _answers(runner, questions))
        write_rows(rows, metadata, captioner, output)


def _ask(runner: Runner, questions: Questions) -> None:
    """Ask about the rows, and once more where the answer is empty or cut."""

    def ask_again(row: int) -> Request:
        return _request(questions, row, f" {RETRY_PROMPT}")

    runner.ask(partial(_request, questions))
    runner.ask_rows(_not_good(runner, questions), ask_again, attempt=2)


def _not_good(runner: Runner, questions: Questions) -> list[int]:
    """Return the rows whose answer is empty or cut."""
    return [
        row
        for row, answers in enumerate(_answers(runner, questions))
        if answers and answers[0].error is None and not _is_good(answers[0])
    ]


def _request(questions: Questions, row: int, suffix: str = "") -> Request:
    prompt = questions.prompts(row) + suffix
    return Request(row, (), prompt, paths=questions.paths_of(row))


def _answers(runner: Runner, questions: Questions) -> Iterator[list[Response]]:
    """Yield the cleaned answers about each row."""
    for row in range(len(questions)):
        yield [replace(answer, text=clean(answer.text)) for answer in runner.answers(row)]


def _answers_of_file(
    engine: str, file: str | None, key: str, questions: Questions
) -> Iterator[list[Response]]:
    """Yield the user's caption of each row."""
    captions = module_of(engine).read_captions(file, key)
    answer_of = by_image_id(captions, questions.images["image_id"].to_pylist(), file, key)
    missing = failed("the file has no caption for it")
    for row_id in questions.ids:
        yield [answer_of.get(row_id, missing)]


def _rows(questions: Questions, answers: Iterable[list[Response]]) -> Iterator[Row]:
    for row, of_row in enumerate(answers):
        yield _columns(questions, row, of_row), of_row


def _is_good(answer: Response) -> bool:
    return answer.finish_reason != "length" and bool(answer.text)


def _columns(questions: Questions, row: int, answers: Sequence[Response]) -> dict[str, Any]:
    """Return the columns of a row, with its first good answer or the first that has a text.

    Without an answer the row was not asked about.
    """
    answers = answers or [NOT_ASKED]
    good = [answer for answer in answers if _is_good(answer)]
    best, *_ = good or [answer for answer in answers if answer.text] or answers[-1:]
    return {
        "id": questions.ids[row],
        "members": questions.member_ids(row),
        "pseudo_label": None if questions.labels is None else questions.labels[row],
        "prompt": questions.prompts(row),
        "caption": best.text,
        "finish_reason": best.finish_reason,
        "n_tokens": best.n_tokens,
        "attempts": 0 if best is NOT_ASKED else len(answers),
        "error": best.error,
        "digest": answers[0].digest,
    }


def gather_captions(images_path: str, shard_paths: Sequence[str], output: str) -> None:
    """Write the rows of all shards, of captions or of class scores, in the order of the index."""
    metadata = [read_metadata(path) for path in shard_paths]
    schema = metadata[0].schema
    rows = pa.concat_tables([tables.read(path, schema) for path in shard_paths])
    index, _ = tables.read_unlabelled(images_path, training=True)
    # Not every image has a group.
    row_of_image = pc.index_in(index["image_id"], rows[schema.names[0]])
    order = row_of_image.combine_chunks().drop_null()
    n_at_once = tables.CAPTION_ROWS
    with tables.writing(output, schema, metadata[0].joined(metadata)) as add:
        for start in range(0, max(1, len(order)), n_at_once):
            piece = rows.take(order[start : start + n_at_once])
            piece = piece.combine_chunks()
            add({name: piece[name] for name in schema.names})


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


def captions(action: Literal["show"], file: str, /, n: int = 5) -> str:
    """Show a few captions with their prompts.

    Args:
        action: show
        file: a table of captions: results/<dataset>/captions/*.parquet
        n: number of captions (default: 5)
    """
    table = tables.read(file, tables.CAPTIONS)
    metadata = tables.read_metadata(file, CaptionsMetadata)
    step = max(1, len(table) // max(1, n))
    rows = table.take(pa.array(range(0, len(table), step), pa.int64())[:n]).to_pylist()
    source = metadata.file or f"{metadata.model} ({metadata.engine}, {metadata.date})"
    return "\n\n".join([f"{file}: {len(table)} captions by {source}", *map(_lines, rows)])


def _lines(row: dict[str, Any]) -> str:
    lines = [row["id"], f"  prompt    {row['prompt']}"]
    if len(row["members"]) > 1:
        lines.append(f"  members   {', '.join(row['members'])}")
    caption = row["caption"] or f"none: {row['error'] or row['finish_reason']}"
    wrapped = textwrap.wrap(f"{caption} ({row['finish_reason']})", WIDTH)
    lines.append("  caption   " + "\n            ".join(wrapped))
    return "\n".join(lines)
