"""Find the files of a model, and of the results that it lies in.

Imports no torch: commands refuse a wrong folder at once.
"""

from pathlib import Path

from latteclip.core.errors import UserError

MODEL = "model"  # the folder's name inside that of a run
# Files in it.
CLIP_CONFIG = "open_clip_config.json"
CLASSIFIER = "prototypes.safetensors"
# In a dataset's results: what marks images of none of the classes.
DETECTOR = "classifiers/unknown.safetensors"


def find_model(model: str | Path) -> Path:
    """Return the folder of a model with a classifier, also from that of its run or dataset."""
    for folder in (Path(model), Path(model) / MODEL):
        if all((folder / name).is_file() for name in (CLIP_CONFIG, CLASSIFIER)):
            return folder
    raise UserError(
        f"{model} has no chosen model ({CLIP_CONFIG} with {CLASSIFIER} beside it); run the "
        "whole workflow, which chooses one, or name results/<dataset>/<method>/seed0/model."
    )


def result_file(name: str, model: Path, option: str) -> Path:
    """Return a file in the folder results/<dataset> of a model, or raise UserError."""
    # A model is in results/<dataset>/<method>/seed<n>/model.
    for place in (*model.parents[:3], *model.absolute().parents[:3]):
        if (place / name).is_file():
            return place / name
    raise UserError(
        f"{model} is not in the results of a dataset with {name}, which {option} reads; run the "
        "workflow, and name the model as it lies there."
    )
