"""Image and group descriptions from a multimodal model (LatteCLIP, section 3.2).

Letters: N training images, G groups.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from latteclip import captioners, tables
from latteclip.errors import UserError
from latteclip.grids import grid
from latteclip.images import open_rgb
from latteclip.progress import Progress
from latteclip.prompts import PLACE, fill

log = logging.getLogger(__name__)
GROUP_SIZE = 4
MAX_EMPTY = 0.05  # share of pictures about which the model may write nothing


@dataclass(frozen=True)
class GroupSettings:
    """How groups are drawn and laid out."""

    seed: int
    canvas: int  # side of the square picture, pixels
    gap: int  # between its cells, pixels


@dataclass(frozen=True)
class Question:
    """One text that is wanted: which images, of which class, with which prompt."""

    id: str
    members: list[str]
    pseudo_label: int | None
    prompt: str


def caption_images(
    images_path: str,
    pseudo_labels_path: str | None,
    prompt: str,
    settings: captioners.CaptionerSettings,
    output: str,
    *,
    threads: int,
) -> None:
    """Write a caption for every image that is not in the test split.

    Args:
        pseudo_labels_path: needed where the prompt has a place for the pseudo-label.
    """
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    prompts = [prompt] * len(image_ids)
    if PLACE in prompt:
        if pseudo_labels_path is None:
            raise UserError(f"Prompt {prompt!r} names the pseudo-label; give --pseudo-labels.")
        labels = _pseudo_labels(pseudo_labels_path, image_ids)
        prompts = [fill(prompt, classnames[label]) for label in labels]
    questions = [Question(i, [i], None, text) for i, text in zip(image_ids, prompts, strict=True)]
    paths = dict(zip(image_ids, table["path"].to_pylist(), strict=True))
    _caption(
        questions, lambda question: open_rgb(paths[question.id]), settings, {}, output, threads
    )


def caption_groups(
    images_path: str,
    pseudo_labels_path: str,
    prompt: str,
    groups: GroupSettings,
    settings: captioners.CaptionerSettings,
    output: str,
    *,
    threads: int,
) -> None:
    """Draw a group for every image that is not in the test split and write its caption."""
    table, classnames = tables.read_unlabelled(images_path, training=True)
    image_ids = table["image_id"].to_pylist()
    labels = _pseudo_labels(pseudo_labels_path, image_ids)
    questions = [
        Question(
            str(number),
            [image_ids[i] for i in members],
            labels[number],
            fill(prompt, classnames[labels[number]]),
        )
        for number, members in enumerate(draw_groups(labels, groups.seed))
    ]
    paths = dict(zip(image_ids, table["path"].to_pylist(), strict=True))

    def picture(question: Question) -> Image.Image:
        pictures = [open_rgb(paths[member]) for member in question.members]
        return grid(pictures, groups.canvas, groups.gap)

    _caption(questions, picture, settings, {"groups": asdict(groups)}, output, threads)


def draw_groups(labels: Sequence[int], seed: int) -> list[list[int]]:
    """One group an image: four images of its pseudo-label, drawn at random.

    Drawn with replacement only where the class has fewer than four images.

    Args:
        labels: pseudo-label of each of the N images.

    Returns:
        N lists of four indices into `labels`.
    """
    generator = np.random.default_rng(seed)
    of_class = {label: np.flatnonzero(np.equal(labels, label)) for label in set(labels)}
    return [
        generator.choice(
            of_class[label], GROUP_SIZE, replace=len(of_class[label]) < GROUP_SIZE
        ).tolist()
        for label in labels
    ]


def _pseudo_labels(path: str, image_ids: Sequence[str]) -> list[int]:
    return tables.lookup(path, tables.PSEUDO_LABELS, "image_id", "pseudo_label", image_ids)


def _caption(
    questions: Sequence[Question],
    picture: Callable[[Question], Image.Image],
    settings: captioners.CaptionerSettings,
    provenance: dict[str, object],
    output: str,
    threads: int,
) -> None:
    """Ask every question and write CAPTIONS in their order."""
    captioner = captioners.start(settings, threads)
    answers: list[captioners.Answer] = []
    progress = Progress(len(questions), "captions")
    for batch in _ahead(questions, picture, settings.batch_size, threads):
        answers += captioner.answer(batch)
        progress.add(len(batch))
    captions = [" ".join(answer.text.split()) for answer in answers]
    empty = sum(not caption for caption in captions)
    if empty > MAX_EMPTY * len(captions):
        raise UserError(
            f"{settings.model} wrote nothing for {empty} of {len(captions)} pictures; "
            "try another prompt or captioner.model."
        )
    tables.write(
        output,
        {
            "id": [q.id for q in questions],
            "members": [q.members for q in questions],
            "pseudo_label": [q.pseudo_label for q in questions],
            "prompt": [q.prompt for q in questions],
            "caption": captions,
            "finish_reason": [answer.finish_reason for answer in answers],
            "n_tokens": pa.array([answer.n_tokens for answer in answers], pa.int32()),
        },
        tables.CAPTIONS,
        {"captioner": asdict(settings), "engine": captioner.version, **provenance},
    )
    log.info(
        "Wrote %d captions, %d distinct, %d empty, %d cut at %d tokens.",
        len(captions),
        len(set(captions)),
        empty,
        sum(answer.finish_reason == "length" for answer in answers),
        settings.max_new_tokens,
    )


def _ahead(
    questions: Sequence[Question],
    picture: Callable[[Question], Image.Image],
    batch_size: int,
    threads: int,
) -> Iterator[list[captioners.Request]]:
    """Batches of requests; the next batch's pictures are made while the engine works on one."""
    chunks = [questions[i : i + batch_size] for i in range(0, len(questions), batch_size)]
    with ThreadPoolExecutor(max(2, threads)) as pool:
        upcoming = [pool.submit(picture, question) for question in chunks[0]] if chunks else []
        for number, chunk in enumerate(chunks):
            current = upcoming
            if number + 1 < len(chunks):
                upcoming = [pool.submit(picture, question) for question in chunks[number + 1]]
            yield [
                captioners.Request(future.result(), question.prompt)
                for future, question in zip(current, chunk, strict=True)
            ]
