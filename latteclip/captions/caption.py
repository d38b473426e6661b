"""Image and group descriptions from a multimodal model (LatteCLIP, section 3.2).

Every answer is cached as it comes, and the table is written at the end. So a broken run goes on
where it stopped, and a request is answered once.
"""

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latteclip.captions.answers import AnswersMetadata, write_answers
from latteclip.captions.engine import Response, picture_layout
from latteclip.captions.questions import Questions, Request
from latteclip.config.keys import CaptionerSection
from latteclip.config.registry import ENGINES
from latteclip.core import tables

# Added to the prompt of a second request, after an answer that was empty or cut.
SHORTER = " Answer with one short sentence."
NOT_ASKED = Response("", "not asked", None)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_OPENING = re.compile(
    r"^(?:<think>.*?</think>\s*|(?:assistant|caption|description|answer)\s*:\s*"
    r"|(?:sure|certainly|of course|absolutely|okay|ok)\s*[!,.:]\s*(?=\S)"
    r"|here(?:['\u2019]s| is| are| it is)\b[^.!?\"\u201c]{0,100}?:\s*(?=\S))+",
    re.I,
)
_AROUND = " \"'*`\u201c\u201d\u2018\u2019"  # quotes and emphasis around a caption


class CaptionQuestions(Questions):
    """Questions whose answers are captions."""

    def request(self, row: int, *, again: bool) -> Request:
        return self.about(row, self.prompt_of(row) + (SHORTER if again else ""))

    def columns(self, row: int, answer: Response | None) -> dict[str, Any]:
        found = answer or NOT_ASKED
        return {
            "id": self.id_of(row),
            "members": self.of_members(row, "image_id"),
            "prompt": self.prompt_of(row),
            "caption": clean(found.text),
            "finish_reason": found.finish_reason,
            "error": found.error,
        }


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

    With a `canvas`, captions are of a group for each image, in a square picture of so many pixels.
    The classifier decides which images come first, and a person's answers which are left out.
    UserError: the engine does not start, or too many captions are missing.
    """
    questions = CaptionQuestions(
        *(images_path, pseudo_labels_path, prompt),
        *(picture_layout(captioner, canvas), shard),
        max_images=captioner.max_images,
        classifier_path=classifier_path,
        answers_path=answers_path,
    )
    if ENGINES[captioner.engine].reads_file:
        _copy_captions(questions, captioner, output)
    else:
        write_answers(questions, captioner, output, store, labeller, threads)


def _copy_captions(
    questions: CaptionQuestions, captioner: CaptionerSection, output: str
) -> None:
    """Write the captions of the user's file, by its columns image_id and caption."""
    # Here: engines need no pandas.
    import pandas as pd

    from latteclip.core.user_tables import cells_by_image, read_image_table

    key = "groups_file" if questions.layout.canvas else "images_file"
    file, name = getattr(captioner, key), f"captioner.{key}"
    ids = questions.images["image_id"].to_pylist()
    captions = cells_by_image(
        file, name, read_image_table(file, name), ["caption"], ids
    )
    rows = []
    for row in range(len(questions)):
        [caption] = captions.get(questions.id_of(row), [""])
        text = "" if pd.isna(caption) else str(caption)
        rows.append(questions.columns(row, Response(text, "stop", None)))
    table = pa.Table.from_pylist(rows, tables.CAPTIONS)
    tables.write(output, table, tables.CAPTIONS, AnswersMetadata(file))


def gather_captions(
    images_path: str, shard_paths: Sequence[str], output: str
) -> None:
    """Write the rows of all shards, of captions or of class scores, in the order of the index."""
    metadata = [
        tables.read_metadata(path, AnswersMetadata) for path in shard_paths
    ]
    rows = pa.concat_tables(map(tables.read, shard_paths))
    schema = (
        tables.CLASS_SCORES if "options" in rows.column_names else tables.CAPTIONS
    )
    index, _ = tables.read_unlabelled(images_path, training=True)
    ids = rows[0]  # the first column of both
    rows = rows.take(pc.index_in(index["image_id"], ids))
    tables.write(output, rows, schema, AnswersMetadata.joined(metadata))


def clean(text: str) -> str:
    """Return the caption in a model's answer; it may be empty.

    White space and control characters become single spaces. Half a character at the end, leading
    thoughts, a label ("Caption:") or preface ("Sure, here is a description:"), and quotes or
    asterisks around the whole go.
    """
    words = " ".join(_CONTROL.sub(" ", text).rstrip("\ufffd").split())
    return _OPENING.sub("", words.strip(_AROUND)).strip(_AROUND)
