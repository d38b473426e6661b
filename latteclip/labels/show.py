"""`latteclip labels show`: who was believed about the labels of a dataset, and a few images."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latteclip.core import tables
from latteclip.core.errors import UserError

WIDTH = 100
# Entries of the metadata of CAPTION_LABELS that are told.
TOLD = (
    *("classnames", "model", "votes", "voting", "agreement", "corroborated", "corroboration"),
    *("weights", "rate", "independent", "gains", "changed"),
)
Row = dict[str, Any]  # of CAPTION_LABELS, with the zero-shot label and the caption


def command(words: Sequence[str], n: int, image_ids: Sequence[str]) -> str:
    """What `latteclip labels WORDS` prints.

    Args:
        words: "show" and the folder of a dataset's results.
        n: how many images.
        image_ids: those that are wanted; none: n of different kinds.
    """
    if len(words) != 2 or words[0] != "show":
        raise UserError(
            "Say: latteclip labels show results/<dataset> [-n 6] [--image ID ...], or export."
        )
    return show(words[1], n, image_ids)


def show(folder: str, n: int, image_ids: Sequence[str] = ()) -> str:
    """The summary of a dataset's labels, and some images with what each witness said."""
    path = Path(folder) / "caption_labels.parquet"
    if Path(folder).is_dir() and not path.exists():
        raise UserError(
            f"{path} does not exist: no method of this dataset was run that learns from captions "
            "or class scores (pseudo_labels: caption, lmm or fused)."
        )
    table, metadata = tables.read(path, tables.CAPTION_LABELS)
    missing = [key for key in TOLD if key not in metadata]
    if missing:
        raise UserError(
            f"{path} does not say {', '.join(missing)}; delete it and rerun label_by_captions."
        )
    rows = table.to_pylist()
    _add_zero_shot(rows, Path(folder) / "pseudo_labels.parquet")
    chosen = _named(rows, image_ids, path) if image_ids else _spread(rows, n)
    _add_captions(chosen, Path(folder) / "captions" / "images.parquet")
    blocks = [_block(row, metadata) for row in chosen]
    return "\n\n".join([_summary(path, rows, metadata), *blocks])


def _add_zero_shot(rows: list[Row], path: Path) -> None:
    """Give each row its `zero_shot_label`."""
    ids = [row["image_id"] for row in rows]
    labels = tables.lookup(path, tables.PSEUDO_LABELS, "image_id", "pseudo_label", ids)
    for row, label in zip(rows, labels, strict=True):
        row["zero_shot_label"] = label


def _add_captions(rows: list[Row], path: Path) -> None:
    """Give each row its `caption`, where the dataset has a table of them."""
    if not path.is_file():
        return
    table, _ = tables.read(path, tables.CAPTIONS, ["id", "caption"])
    captions = dict(zip(table["id"].to_pylist(), table["caption"].to_pylist(), strict=True))
    for row in rows:
        row["caption"] = captions.get(row["image_id"])


# --- which images --------------------------------------------------------------------------------


def _named(rows: list[Row], image_ids: Sequence[str], path: Path) -> list[Row]:
    row_of = {row["image_id"]: row for row in rows}
    for image_id in image_ids:
        if image_id not in row_of:
            raise UserError(
                f"{path} has no image {image_id!r}; its {len(rows)} training images are called "
                f"such as {rows[0]['image_id']!r}."
            )
    return [row_of[image_id] for image_id in image_ids]


def _spread(rows: list[Row], n: int) -> list[Row]:
    """Images of the three kinds in equal numbers, where there are so many, in table order."""
    kinds: list[list[int]] = [[], [], []]
    for number, row in enumerate(rows):
        kinds[_kind(row)].append(number)
    chosen = [
        kind[i * len(kind) // share]
        for kind, share in zip(kinds, _shares([len(kind) for kind in kinds], n), strict=True)
        for i in range(share)
    ]
    return [rows[number] for number in sorted(chosen)]


def _kind(row: Row) -> int:
    """0: the label is not the zero-shot one, 1: it is, but not all say so, 2: all do."""
    if row["fused_label"] != row["zero_shot_label"]:
        return 0
    return 1 if len(_said(row)) > 1 else 2


def _said(row: Row) -> set[int]:
    """The classes that the witnesses of an image name."""
    named = {row["calibrated_label"], row["image_label"], row["zero_shot_label"]}
    named |= {row[f"{name}_label"] for name in ("caption", "lmm") if row[f"{name}_confidence"]}
    return named - {None}


def _shares(sizes: Sequence[int], n: int) -> list[int]:
    """At most n, handed out one by one in turn to kinds of which there are so many."""
    shares = [0] * len(sizes)
    for turn in range(max(0, n)):
        for kind, size in enumerate(sizes):
            if shares[kind] <= turn < size and sum(shares) < n:
                shares[kind] += 1
    return shares


# --- summary -------------------------------------------------------------------------------------


def _summary(path: Path, rows: list[Row], metadata: dict[str, Any]) -> str:
    n, voting, votes = len(rows), metadata["voting"], metadata["votes"]
    moved = sum(row["fused_label"] != row["zero_shot_label"] for row in rows)
    lines = [
        f"{path}: {n} training images, {len(metadata['classnames'])} classes, CLIP "
        f"{metadata['model']}",
        f"votes: {votes} speak for a class of {voting} of {n} images. {metadata['agreement']:.0%} "
        "of these votes are the class that calibrated zero-shot scores name. (Calibrated: each "
        "class's mean score over all images is taken off.)",
        *(_that_count(metadata) if metadata["corroborated"] else _that_do_not(metadata)),
        f"labels: {moved} of {n} are not the zero-shot ones, {metadata['changed']} not the "
        "calibrated ones.",
    ]
    return "\n".join(_wrapped(line) for line in lines)


def _that_count(metadata: dict[str, Any]) -> list[str]:
    """What was learned of votes that are corroborated."""
    votes, gains, weights = metadata["votes"], metadata["gains"], metadata["weights"]
    rate, p_value = metadata["rate"], metadata["corroboration"]["p_value"]
    believed = (
        "how strongly the others are believed (weights): zero-shot scores "
        f"{weights['zero_shot']:.2f}, image prototypes {weights['images']:.2f}"
    )
    if votes == "captions":
        believed += f", prototypes of captions {weights['texts']:.2f}"
    return [
        f"{votes} count: they fit the looks of the images and the zero-shot scores better than "
        f"the same votes in random order do (p-value {p_value:.3f}).",
        "how well the others predict a vote without seeing it: zero-shot scores make it "
        f"{math.exp(gains['zero_shot']):.2f} times as likely as the frequencies of the classes do, "
        f"image prototypes {math.exp(gains['images']):.2f} times, both together "
        f"{math.exp(gains['both']):.2f} times (1: no better).",
        f"{believed}; 0: not at all.",
        f"zero-shot scores and image prototypes predict {rate:.0%} of the votes. The more they "
        "predict, the likelier all make the same mistakes. So beside a vote these two count "
        f"{metadata['independent']:.2f} times.",
    ]


def _that_do_not(metadata: dict[str, Any]) -> list[str]:
    p_value = metadata["corroboration"]["p_value"]
    return [
        f"{metadata['votes']} do not count: in random order they fit the looks of the images and "
        f"the zero-shot scores as well (p-value {p_value:.3f}). So the labels are the calibrated "
        "zero-shot ones."
    ]


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


# --- images --------------------------------------------------------------------------------------


def _block(row: Row, metadata: dict[str, Any]) -> str:
    """An image: who says what."""
    written = metadata.get("written_names", {})
    classnames = [written.get(name, name) for name in metadata["classnames"]]
    lines = [
        row["image_id"],
        _line("zero-shot", classnames[row["zero_shot_label"]]),
        _line("calibrated", classnames[row["calibrated_label"]]),
    ]
    if row["image_label"] is not None:
        lines.append(_line("images", f"{classnames[row['image_label']]} (those that look alike)"))
    lines += [
        _line(title, _opinion(row, name, classnames, votes=metadata["votes"] == kind))
        for title, name, kind in (
            ("caption", "caption", "captions"),
            ("LMM", "lmm", "class scores"),
        )
        if row[f"{name}_label"] is not None
    ]
    if row.get("caption"):
        lines += [f"              {line}" for line in textwrap.wrap(row["caption"], WIDTH - 14)]
    fused = f"{classnames[row['fused_label']]} ({row['fused_confidence']:.2f})"
    return "\n".join([*lines, _line("fused", fused)])


def _opinion(row: Row, name: str, classnames: list[str], *, votes: bool) -> str:
    """What the caption or the LMM says by itself."""
    confidence = row[f"{name}_confidence"]
    if not confidence:
        return "says nothing"
    found = f"{classnames[row[f'{name}_label']]} ({confidence:.2f})"
    return found if votes else f"{found}, does not vote"


def _line(title: str, said: str) -> str:
    return f"  {title:<11} {said}"
