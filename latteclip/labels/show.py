"""`latteclip labels show`: how the labels of a dataset came about, and a few images."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.errors import UserError
from latteclip.labels.guarantees import checked_sentence

WIDTH = 100
# Rows of an image: title, column of its label, column of a confidence.
SOURCES = (
    ("zero-shot", "zero_shot_label", None),
    ("calibrated", "calibrated_label", None),
    ("images", "image_label", None),
    ("caption", "caption_label", "caption_confidence"),
    ("LMM", "lmm_label", "lmm_confidence"),
    ("fused", "fused_label", "fused_confidence"),
)
Row = dict[str, Any]  # of FUSED_LABELS, with the zero-shot label and the caption


def command(words: Sequence[str], n: int, image_ids: Sequence[str]) -> str:
    """Return what `latteclip labels WORDS` prints.

    Args:
        words: "show" and the folder of a dataset's results.
        n: number of images.
        image_ids: the images to print; without any, n images of different kinds.
    """
    if len(words) != 2 or words[0] != "show":
        raise UserError(
            "Say: latteclip labels show results/<dataset> [-n 6] [--image ID ...], or export."
        )
    return show(words[1], n, image_ids)


def show(folder: str, n: int, image_ids: Sequence[str] = ()) -> str:
    """Return the summary of a dataset's labels, and some images with the label by each source."""
    path = Path(folder) / "fused_labels.parquet"
    if Path(folder).is_dir() and not path.exists():
        raise UserError(
            f"{path} does not exist: no method of this dataset was run that learns from captions "
            "or class scores (pseudo_labels: caption, lmm or fused)."
        )
    table, metadata = tables.read(path, tables.FUSED_LABELS)
    zero_shot, captions = Path(folder) / "pseudo_labels.parquet", Path(folder) / "captions"
    columns = tables.PSEUDO_LABELS, "image_id", "pseudo_label"
    labels = tables.lookup_column(str(zero_shot), *columns, table["image_id"])
    table = table.append_column("zero_shot_label", labels)
    chosen = _by_id(table, image_ids, path) if image_ids else _of_each_kind(table, n)
    rows = table.take(pa.array(chosen, pa.int64())).to_pylist()
    _add_captions(rows, captions / "images.parquet")
    return "\n\n".join([_summary(path, table, metadata), *(_image(row, metadata) for row in rows)])


def _add_captions(rows: list[Row], path: Path) -> None:
    """Give each row its `caption`, where the dataset has a table of captions."""
    if not path.is_file():
        return
    table, _ = tables.read(path, tables.CAPTIONS, ["id", "caption"])
    table = table.filter(
        pc.is_in(table["id"], pa.array([row["image_id"] for row in rows], pa.string()))
    )
    captions = dict(zip(table["id"].to_pylist(), table["caption"].to_pylist(), strict=True))
    for row in rows:
        row["caption"] = captions.get(row["image_id"])


# --- which images --------------------------------------------------------------------------------


def _by_id(table: pa.Table, image_ids: Sequence[str], path: Path) -> list[int]:
    """Return the rows of images."""
    ids = table["image_id"].to_pylist()
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    for image_id in image_ids:
        if image_id not in row_of:
            raise UserError(
                f"{path} has no image {image_id!r}. An image_id of this table is {ids[0]!r}."
            )
    return [row_of[image_id] for image_id in image_ids]


def _of_each_kind(table: pa.Table, n: int) -> list[int]:
    """Return rows of the three kinds in equal numbers, as far as they exist, in table order."""
    kinds: list[list[int]] = [[], [], []]
    for number, row in enumerate(table.to_pylist()):
        kinds[_kind(row)].append(number)
    shares = [0, 0, 0]
    for turn in range(max(0, n)):
        for kind, rows in enumerate(kinds):
            if shares[kind] <= turn < len(rows) and sum(shares) < n:
                shares[kind] += 1
    return sorted(
        rows[i * len(rows) // share]
        for rows, share in zip(kinds, shares, strict=True)
        for i in range(share)
    )


def _kind(row: Row) -> int:
    """Return 0 if the label is not the zero-shot one, 1 if sources disagree, else 2."""
    if row["fused_label"] != row["zero_shot_label"]:
        return 0
    named = {
        row[label]
        for _, label, confidence in SOURCES
        if row[label] is not None and (confidence is None or row[confidence])
    }
    return 1 if len(named) > 1 else 2


# --- summary -------------------------------------------------------------------------------------


def _summary(path: Path, table: pa.Table, metadata: dict[str, Any]) -> str:
    n, votes = len(table), metadata["votes"]
    moved = pc.sum(pc.not_equal(table["fused_label"], table["zero_shot_label"])).as_py() or 0
    p_value = metadata["corroboration"]["p_value"]
    lines = [
        f"{path}: {n} training images, {len(metadata['classnames'])} classes, CLIP "
        f"{metadata['model']}",
        f"votes: {votes} of {metadata['voting']} of {n} images, {metadata['agreement']:.0%} of "
        "them for the class of the calibrated zero-shot scores (each class's mean subtracted)",
    ]
    if metadata["corroborated"]:
        lines += [
            f"test: {votes} agree with images and zero-shot scores better than permuted votes do "
            f"(p-value {p_value:.3f}), so they count",
            *_predictors(metadata),
            f"explained: zero-shot scores and image prototypes explain "
            f"{metadata['explained_share']:.0%} of the votes; the more they explain, the likelier "
            "all make the same mistakes, so beside a vote they count "
            f"{metadata['independence']:.2f} times",
        ]
    else:
        lines.append(
            f"test: {votes} agree with images and zero-shot scores no better than permuted votes "
            f"do (p-value {p_value:.3f}), so they are ignored: the labels are the calibrated "
            "zero-shot ones"
        )
    lines.append(
        f"labels: {moved} of {n} differ from the zero-shot ones, {metadata['changed']} from the "
        "calibrated ones"
    )
    if answers := metadata.get("answers"):
        lines.append(_answers(answers))
    return "\n".join(_wrapped(line, "  ") for line in lines)


def _answers(answers: dict[str, Any]) -> str:
    """Return how many images a person answered about, and how right the labels are by these."""
    line = f"answers: a person answered about {len(answers['images'])} images"
    if checked := answers.get("checked"):
        line += f"; labels {checked_sentence(checked)}"
    return line


def _predictors(metadata: dict[str, Any]) -> list[str]:
    """Return what each predictor of the votes is worth, a line each."""
    weights, gains = metadata["weights"], metadata["gains"]
    lines = ["predictors: weight (0: none); how many times as likely a vote is as by frequencies"]
    rows = [
        ("zero-shot scores", f"{weights['zero_shot']:.2f}", gains["zero_shot"]),
        ("image prototypes", f"{weights['images']:.2f}", gains["images"]),
        *((eye["model"], f"{eye['weight']:.2f}", eye["gain"]) for eye in metadata.get("eyes", [])),
        ("together", "", gains["both"]),
    ]
    for title, weight, gain in rows:
        if len(title) > 24:  # a line of its own
            lines.append(f"  {title}")
            title = ""
        lines.append(f"  {title:<24}{weight:>6}{math.exp(gain):>8.2f}")
    if metadata["votes"] == "captions":
        lines.append(f"  {'prototypes of captions':<24}{weights['texts']:>6.2f}")
    return lines


def _wrapped(text: str, indent: str) -> str:
    if len(text) <= WIDTH:
        return text
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


# --- images --------------------------------------------------------------------------------------


def _image(row: Row, metadata: dict[str, Any]) -> str:
    """Return an image's label by each source, and its caption."""
    written = metadata.get("written_names", {})
    names = [written.get(name, name) for name in metadata["classnames"]]
    lines = [row["image_id"]]
    for title, label, confidence in SOURCES:
        if row[label] is None:
            continue
        text = names[row[label]]
        if confidence is not None:
            text = f"{text} ({row[confidence]:.2f})" if row[confidence] else "no vote"
        lines.append(f"  {title:<11} {text}")
        if title == "caption" and row.get("caption"):
            indent = " " * 14
            lines.append(textwrap.fill(row["caption"], WIDTH, initial_indent=indent,
                                       subsequent_indent=indent))  # fmt: skip
    answers = metadata.get("answers", {"images": {}})["images"]
    if row["image_id"] in answers:
        lines.append(f"  {'answered':<11} {answers[row['image_id']] or 'none of these'}")
    return "\n".join(lines)
