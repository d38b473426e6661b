"""Messages at the start and end of a run of the workflow, for the handlers of the Snakefile."""

import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from latteclip.cli import estimate
from latteclip.config import checks, jobs, resources
from latteclip.config.resolve import Dataset, Run
from latteclip.core.errors import UserError
from latteclip.core.files import lines_of, read_object
from latteclip.core.terminal import counted, one_line

FUSED_LABELS = "fused_labels.parquet"
ERROR = "error: "  # begins the message of a command that fails
STOPPED = (
    "Stopped",
    "interrupted",
)  # beginnings of a line at the end of a log after Ctrl-C
TRACEBACK = "Traceback (most recent call last):"
LAST = 20  # lines of a log
MAX_MESSAGE = 2_000  # characters


def started(run: Run, pending: Collection[str]) -> list[str]:
    """Return the datasets of a run, and the downloads among the files that its jobs will write."""
    lines = [
        f"{dataset.name}: {_images(dataset)}. Methods: {', '.join(dataset.method_names)}."
        for dataset in run.datasets
    ]
    return [*lines, *_downloads(run, pending)]


def _images(dataset: Dataset) -> str:
    """Return the numbers of images and classes of a dataset, as far as they are known."""
    if counts := resources.counts(dataset):
        classes = (
            f" of {counted(counts.classes, 'class', 'classes')}" if counts.classes else ""
        )
        return f"{counted(counts.train + counts.test, 'image')}{classes}"
    folder = dataset.keys.source.folder if dataset.keys.source else None
    if not folder:
        return "images to download"
    n = estimate.count_files(dataset)
    if n is None:
        return f"images in {folder}"
    limit = dataset.run.keys.limit
    drawn = f", at most {limit} of each split are drawn" if limit else ""
    classes = "classes to be proposed"
    if not dataset.discovers:
        classes = _classes(folder, dataset.keys.split.examples)
    return f"{counted(n, 'image file')} in {folder}, {classes}{drawn}"


def _classes(folder: str, examples: str | None) -> str:
    path = Path(folder, checks.CLASSES)
    try:
        names = lines_of(path)
    except (OSError, UserError):
        place = examples or folder
        return f"classes: {checks.some_names(sorted(checks.class_folders(place)))}"
    return f"{counted(len(names), 'class', 'classes')} in {path}"


def _downloads(run: Run, pending: Collection[str]) -> Iterator[str]:
    for dataset in run.datasets:
        if f"resources/{dataset.whole}/data" in pending:
            size = dataset.keys.size or "size unknown"
            yield f"To download: the images of {dataset.whole} ({size})."
    repos = [
        " ".join(filter(None, (model.names or {}).values()))
        for slug, model in run.hub_models.items()
        if run.place(jobs.MODEL_NOTE.format(model=slug)) in pending
    ]
    if repos:
        yield f"To download from the Hugging Face hub, unless in its cache: {', '.join(repos)}."


def finished(run: Run, outputs: Collection[str]) -> list[str]:
    """Return the places of the results, and the next commands, by the outputs of all jobs."""
    lines: list[str] = []
    for dataset in run.datasets:
        results = dataset.folder
        page = f"{results}/report{run.suffix}.html"
        labels = f"{results}/{FUSED_LABELS}"
        if page in outputs:
            lines += _results(dataset, page)
        elif labels in outputs:
            lines += [
                f"{dataset.name}: the labels are in {labels}.",
                f"Next, to look at them: latteclip labels show {results}",
                _export(results),
                "Next, to improve them by your answers, and to estimate their accuracy: latteclip "
                f"teach {results}",
            ]
            model = f"{results}/image_prototypes/seed0/model"
            if model in outputs:
                lines.append(_predict(model))
    index = f"results/{jobs.overview(run)}"
    if len(run.datasets) > 1 and index in outputs:
        lines.append(f"The page of all datasets is {index}.")
    return lines


def _results(dataset: Dataset, page: str) -> Iterator[str]:
    from latteclip.evaluate.results import read_selection  # takes long to import

    results, suffix = dataset.folder, dataset.run.suffix
    yield f"{dataset.name}: {_images(dataset)}. The page is {page}."
    model = f"{results}/model{suffix}"
    place = dataset.run.place
    for selection in map(place, jobs.selection(dataset)):
        chosen = read_selection(selection)
        yield f"The chosen model is {chosen.method}, seed {chosen.seed}, in {model}."
        yield from _by_answers(dataset)
        audits = list(filter(os.path.isfile, map(place, jobs.audit(dataset))))
        for audit in audits:
            yield f"By your answers: {read_object(audit, ['sentence'])['sentence']}"
        has_labels = os.path.isfile(f"{results}/{FUSED_LABELS}")
        if has_labels and not jobs.teaching_answers(dataset):
            yield (
                "Next, to improve it by your answers, and to estimate its accuracy: latteclip "
                f"teach {results}"
            )
        elif not audits:
            yield f"Next, to estimate its accuracy: latteclip audit {results}"
        if has_labels:
            yield _export(results)
        yield _predict(model if suffix else results)
    if not dataset.candidates:
        for method in dataset.methods:
            model = place(f"{method.folder(method.seeds[0])}/model")
            if os.path.isdir(model):
                yield _predict(model)


def _predict(model: str) -> str:
    return (
        "Next, to classify new photographs in a folder new-photos: latteclip predict "
        f"{shlex.quote(model)} new-photos"
    )


def _export(results: str) -> str:
    return (
        f"Next, to use the labels: latteclip labels export {shlex.quote(results)} --format csv "
        "--output labels.csv"
    )


def _by_answers(dataset: Dataset) -> Iterator[str]:
    """Yield the accuracy of the labels and of the chosen model, as far as answers give it."""
    from latteclip.evaluate.results import read_selection, read_statement

    run = dataset.main_method.name, 0
    for path in filter(os.path.isfile, jobs.selection(dataset)):
        run = read_selection(path).run
    statement = read_statement(Path(dataset.folder), run, dataset.run.suffix)
    if labels := statement.labels:
        yield f"The labels: {labels.words}, by {labels.n} answers of teach."
    if model := statement.model:
        yield (
            f"The model, on new photographs from the same days and places: {model.words}, by "
            f"{model.n} answers of {statement.by}."
        )


def failure(rule: str, wildcards: Mapping[str, str], logs: Sequence[str]) -> str:
    """Return the error message of a job that failed or was stopped, from its last log."""
    job = _job_name(rule, wildcards)
    written = [log for log in logs if os.path.isfile(log)]
    if not written:
        return f"{ERROR}{job} has no log. The messages above say why."
    log = written[-1]
    text = Path(log).read_text("utf-8", errors="replace").strip()
    _, is_known, message = f"\n{text}".rpartition(f"\n{ERROR}")
    if is_known:
        message, is_bug, _ = message.partition(TRACEBACK)
        place = f" The log is {log}." if is_bug else ""
        return f"{ERROR}{job}: {one_line(message, MAX_MESSAGE)}{place}"
    # Libraries may write more lines while they end.
    stopped = [line for line in text.splitlines()[-LAST:] if line.startswith(STOPPED)]
    if stopped:
        return f"{job}: {one_line(stopped[-1])}"
    return f"{ERROR}{job} ended without a message, as jobs do that are killed. The log is {log}."


def _job_name(rule: str, wildcards: Mapping[str, str]) -> str:
    values = dict(wildcards)
    name = rule
    if "dataset" in values:
        name += f" of {values.pop('dataset')}"
    parts = []
    for key, value in values.items():
        parts.append(f"{key} {value}" if key in ("seed", "shard") else value)
    return f"{name} ({', '.join(parts)})" if parts else name
