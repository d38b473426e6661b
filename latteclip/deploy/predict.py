"""Classify images with a fine-tuned model, into a table.

Imports no torch until arguments are checked.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from latteclip.clip.model_files import DETECTOR, find_model, result_file
from latteclip.core import terminal
from latteclip.core.errors import UserError
from latteclip.core.files import replacing
from latteclip.core.terminal import one_line, printable
from latteclip.data.images import IMAGE_SUFFIXES, files_of
from latteclip.labels.fusion_report import NAME

log = logging.getLogger(__name__)
SKIPPED = 3  # exit status: some images could not be decoded


def predict(
    model: str,
    paths: Sequence[str],
    /,
    *,
    output: str | None = None,
    topk: int = 1,
    precision: Literal["bf16", "fp16", "float32"] = "bf16",
    device: str,
    threads: int,
    unknown: bool = False,
    abstain: float | None = None,
) -> int:
    """Classify images with the chosen model of a dataset, or another one.

    Images that cannot be decoded are reported on stderr and left out, and the exit status is 3. The
    column score is that of the model's classifier, such as the cosine of image and prototype. The
    column probability is the softmax of the scaled scores over all classes.

    Args:
        model: results/<dataset>, for the chosen model, or results/<dataset>/<method>/seed<n>/model
        paths: image, or folder with its subfolders
        output: .csv file (default: stdout)
        topk: classes per image, at most all (default: 1)
        precision: arithmetic on a GPU (default: bf16)
        unknown: mark images that belong to none of the classes (unknown_score, is_unknown)
        abstain: mark the least certain predictions (abstained), so that with 95 % probability at
            most this share of all is wrong and not marked; needs answers of latteclip teach
    """
    if output and (not output.endswith(".csv") or os.path.isdir(output)):
        raise UserError(f"--output {output} must be a file that ends in .csv.")
    folder = find_model(model)
    if unknown:
        result_file(DETECTOR, folder, "--unknown")
    if abstain is not None:
        result_file(NAME, folder, "--abstain")
    files = image_paths(paths)

    # Here, for it imports torch.
    from latteclip.deploy.predictor import Predictor

    classifier = Predictor(
        folder,
        device=device,
        threads=threads,
        precision=precision,
        unknown=unknown,
        abstain=abstain,
    )
    topk = min(topk, len(classifier.model.classnames))
    names = columns(topk, unknown=unknown, abstain=abstain is not None)

    def cells() -> Iterator[list[Any]]:
        for prediction in classifier.predictions(files, topk):
            if prediction.error:
                log.warning("skipped: %s", one_line(prediction.error))
            else:
                yield prediction.cells()

    n = write_csv(output, names, cells())
    n_skipped = len(files) - n
    log.info("Classified %s, skipped %d.", terminal.counted(n, "image"), n_skipped)
    return SKIPPED if n_skipped else 0


def image_paths(words: Sequence[str]) -> list[str]:
    """Return the image files that words name, without repetitions, in order.

    A word is a file, or a folder, which is searched with all below it. UserError: a word names
    nothing.
    """
    paths: list[str] = []
    for word in words:
        found = files_of(word) if os.path.exists(word) else []
        if not found:
            raise UserError(
                f"{one_line(word)} names no file and no folder with an image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}); check its spelling."
            )
        paths += found
    return list(dict.fromkeys(paths))


def columns(topk: int, *, unknown: bool, abstain: bool) -> list[str]:
    """Return the columns of a table of predictions of K classes."""
    names = ["path"]
    for rank in range(1, topk + 1):
        end = "" if rank == 1 else f"_{rank}"
        names += [f"classname{end}", f"probability{end}", f"score{end}"]
    if unknown:
        names += ["unknown_score", "is_unknown"]
    if abstain:
        names += ["abstained"]
    return names


def write_csv(
    output: str | None, names: list[str], rows: Iterator[list[Any]]
) -> int:
    """Write rows to a file, whole or not at all, or to stdout (None), and return their number."""
    from latteclip.core import tables  # here: arguments are checked first

    if output is not None:
        options: Any = {
            "encoding": "utf-8",
            "errors": "surrogateescape",
            "newline": "",
        }
        with (
            replacing(output) as temporary,
            temporary.open("w", **options) as file,
        ):
            return tables.write_csv(file, names, rows)
    # It takes any path as the system gave it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    if sys.stdout.isatty():  # control characters in names would steer it
        rows = (
            [printable(cell) if isinstance(cell, str) else cell for cell in row]
            for row in rows
        )
    return tables.write_csv(sys.stdout, names, rows)
