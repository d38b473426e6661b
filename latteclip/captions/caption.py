"""Image and group descriptions from a multimodal model (LatteCLIP, section 3.2).

Every answer is cached as it comes, and the table is written at the end. So a broken run goes on
where it stopped, and a request is answered once.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latteclip.captions.answers import AnswersMetadata, Row, write_rows
from latteclip.captions.engine import Response, failed, module_of, picture_layout
from latteclip.captions.pictures import Layout
from latteclip.captions.questions import Questions, Request, questions_about
from latteclip.captions.runner import Runner, running
from latteclip.config.keys import CaptionerSection, GroupsSection
from latteclip.config.registry import ENGINES
from latteclip.core import tables
from latteclip.core.user_tables import by_image_id

# Added to the prompt of a second attempt, after an answer that was empty or cut.
RETRY_PROMPT = " Answer with one short sentence."
NOT_ASKED = Response("", "not asked", None)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_OPENING = re.compile(
    r"^(?:(?:assistant|caption|description|answer)\s*:\s*"
    r"|(?:sure|certainly|of course|absolutely|okay|ok)\s*[!,.:]\s*(?=\S)"
    r"|here(?:['\u2019]s| is| are| it is)\b[^.!?\"\u201c]{0,100}?:\s*(?=\S))+",
    re.I,
)
_AROUND = " \"'*`\u201c\u201d\u2018\u2019"  # quotes and emphasis around a caption


def caption_images(
    images_path: str,
    pseudo_labels_path: str | None,
    prompt: str,
    captioner: CaptionerSection,
    output: str,
    store: str,
    *,
    canvas: int | None = None,
    classifier_path: str | None = None,
    answers_path: str | None = None,
    shard: str = "1/1",
    labeller: str = "",
    threads: int,
) -> None:
    """Write a caption for every image that is not in the test split, or for `max_images`.

    With a `canvas`, captions are of a group for each image, see `caption_groups`. The classifier
    decides which images come first, and a person's answers which are left out. UserError: the
    engine does not start, or too many captions are missing.
    """
    questions = questions_about(
        images_path,
        pseudo_labels_path,
        shard,
        prompt=prompt,
        are_groups=canvas is not None,
        max_images=captioner.max_images,
        classifier_path=classifier_path,
        answers_path=answers_path,
    )
    if ENGINES[captioner.engine].reads_file:
        key = "groups_file" if canvas else "images_file"
        file = getattr(captioner, key)
        captions = module_of(captioner.engine).read_captions(file, f"captioner.{key}")
        ids = questions.images["image_id"].to_pylist()
        of_image = by_image_id(captions, ids, file, f"captioner.{key}")
        missing = failed("the file has no caption for it")
        rows = (
            _row(questions, row, [of_image.get(questions.id_of(row), missing)])
            for row in range(len(questions))
        )
        write_rows(rows, tables.CAPTIONS, captioner, output, file)
        return
    layout = picture_layout(captioner)
    if canvas:
        layout = Layout(canvas, square=layout.square)
    with running(
        layout, captioner, store, shard=shard, labeller=labeller, threads=threads
    ) as runner:
        runner.ask(questions.order, partial(_request, questions))
        again = [row for row in questions.order if _is_poor(runner, questions, row)]
        runner.ask(again, partial(_request, questions, suffix=RETRY_PROMPT))
        rows = (
            _row(questions, row, _answers(runner, questions, row))
            for row in range(len(questions))
        )
        write_rows(rows, tables.CAPTIONS, captioner, output)


def caption_groups(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupsSection,
    captioner: CaptionerSection,
    output: str,
    store: str,
    *,
    classifier_path: str | None = None,
    answers_path: str | None = None,
    shard: str = "1/1",
    threads: int,
) -> None:
    """Draw groups of the images that are not in the test split and write their captions.

    Of `max_images` groups, those of the images that `caption_images` would choose get captions.
    """
    caption_images(
        *(images_path, pseudo_labels_path, prompt, captioner, output, store),
        canvas=groups.canvas,
        classifier_path=classifier_path,
        answers_path=answers_path,
        shard=shard,
        threads=threads,
    )


def _request(questions: Questions, row: int, suffix: str = "") -> Request:
    return questions.request(row, questions.prompt_of(row) + suffix)


def _is_poor(runner: Runner, questions: Questions, row: int) -> bool:
    """Return whether the answer about a row is empty or cut."""
    answer, *_ = _answers(runner, questions, row)
    return answer.error is None and not _is_good(answer)


def _answers(runner: Runner, questions: Questions, row: int) -> list[Response]:
    """Return the cleaned answers about a row, or why there is none."""
    if row not in questions.wanted:
        return []
    first, second = _request(questions, row), _request(questions, row, RETRY_PROMPT)
    found = runner.answers_to(first, second)
    return [replace(answer, text=clean(answer.text)) for answer in found]


def _is_good(answer: Response) -> bool:
    return answer.finish_reason != "length" and bool(answer.text)


def _row(questions: Questions, row: int, answers: Sequence[Response]) -> Row:
    """Return the columns of a row, with its first good answer or the first that has a text.

    Without an answer the row was not asked about.
    """
    good = [answer for answer in answers if _is_good(answer)]
    with_text = [answer for answer in answers if answer.text]
    best, *_ = *good, *with_text, *answers[-1:], NOT_ASKED
    columns = {
        "id": questions.id_of(row),
        "members": questions.member_ids(row),
        "prompt": questions.prompt_of(row),
        "caption": best.text,
        "finish_reason": best.finish_reason,
        "error": best.error,
    }
    return columns, answers


def gather_captions(images_path: str, shard_paths: Sequence[str], output: str) -> None:
    """Write the rows of all shards, of captions or of class scores, in the order of the index."""
    has_scores = "options" in pq.read_schema(shard_paths[0]).names
    schema = tables.CLASS_SCORES if has_scores else tables.CAPTIONS
    metadata = [tables.read_metadata(path, AnswersMetadata) for path in shard_paths]
    rows = pa.concat_tables([tables.read(path, schema) for path in shard_paths])
    index, _ = tables.read_unlabelled(images_path, training=True)
    rows = rows.take(pc.index_in(index["image_id"], rows[schema.names[0]]))
    with tables.writing(output, schema, AnswersMetadata.joined(metadata)) as add:
        for start in range(0, len(rows), tables.CAPTION_ROWS):
            add(rows.slice(start, tables.CAPTION_ROWS).combine_chunks())


def clean(text: str) -> str:
    """Return the caption in a model's answer; it may be empty.

    White space and control characters become single spaces. Half a character at the end, a leading
    label ("Caption:") or preface ("Sure, here is a description:"), and quotes or asterisks around
    the whole go.
    """
    words = " ".join(_CONTROL.sub(" ", text).rstrip("\ufffd").split())
    return _OPENING.sub("", words.strip(_AROUND)).strip(_AROUND)
