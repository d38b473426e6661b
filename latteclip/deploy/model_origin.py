"""Where a model lies: in the results of a dataset, and in the folder of a run or beside it."""

from pathlib import Path

from latteclip.clip.finetuned import MODEL
from latteclip.core.errors import UserError
from latteclip.evaluate.results import read_selection


def results_with(file: Path, model: Path, option: str) -> Path:
    """Return the folder results/<dataset> of a model, which has a file, or raise UserError."""
    for place in model.absolute().parents[:3]:  # of results/<dataset>/<method>/seed<n>/model
        if (place / file).is_file():
            return place
    raise UserError(
        f"{model} is not in the results of a dataset with {file}, which {option} reads; run the "
        "workflow, and name the model as it lies there."
    )


def run_of(model: Path) -> tuple[Path, str]:
    """Return the folder of the run that a model is of, and why the workflow chose it if it did."""
    run = model.absolute().parent
    selection_file = run / f"selection{model.name.removeprefix(MODEL)}.json"
    if not selection_file.is_file():
        return run, ""
    selection = read_selection(selection_file)
    return run / selection.method / f"seed{selection.seed}", selection.reason
