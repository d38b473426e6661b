"""What to do after an audit: the commands that take the best model, show it and export labels."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from latteclip.audit.score import comparisons_of_best, names
from latteclip.evaluate.results import Audit, Run, read_selection

MOST = 10_000  # images of an audit: more than anybody answers


@dataclass(frozen=True)
class Step:
    """Something to do next, and the command that does it."""

    text: str
    command: str = ""  # none: the text is all


def steps(folder: Path, audit: Audit) -> list[Step]:
    """Return what to do after an audit of the results in a folder, the most important first."""
    found = [_take(folder, audit, audit.best.run)] if audit.best else []
    if more := [one.more or 0 for one in comparisons_of_best(audit) if not one.decided]:
        budget = min(audit.images, MOST, -(-(audit.answered + max(10, *more)) // 10) * 10)
        if budget > audit.answered:
            command = f"latteclip audit {_quoted(folder)} --budget {budget}"
            found.append(Step("To decide more, answer more:", command))
    page = folder / "report.html"
    found.append(
        Step(
            "Run the workflow again as before: it chooses the model by these answers where they "
            f"decide, and shows them in {page}."
        )
    )
    if (folder / "caption_labels.parquet").is_file():
        command = f"latteclip labels export {_quoted(folder)} --format csv --output labels.csv"
        found.append(Step("To export the labels of the training images:", command))
    return found


def _take(folder: Path, audit: Audit, best: Run) -> Step:
    """Name the command that takes the best model, or the chosen one where that is as good."""
    name = names(audit)
    selected = _selected(folder)
    over = audit.compare(best, selected) if selected else None
    run = best
    text = f"To take {name[best]}:"
    if selected == best:
        text = f"The workflow chose {name[best]}, too. To take it:"
    elif over and over.decided and over.value > 0:
        text = f"To take {name[best]} in place of {name[over.runs[1]]}, which the workflow chose:"
    elif over:
        run = over.runs[1]
        text = (
            f"The workflow chose {name[run]}, and the answers do not decide against it. To take it:"
        )
    model = folder / "model" if run == selected else folder / run[0] / f"seed{run[1]}" / "model"
    if not model.is_dir():
        return Step(f"{name[run]} has no folder of its model: it is the pretrained CLIP.")
    return Step(text, f"latteclip predict {_quoted(folder if run == selected else model)} photos")


def _selected(folder: Path) -> Run | None:
    """Return the run that was chosen, where one was."""
    path = folder / "selection.json"
    if not path.is_file():
        return None
    selection = read_selection(path)
    return selection.method, selection.seed


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
