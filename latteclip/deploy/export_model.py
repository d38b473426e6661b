"""`latteclip export`: a model for other software. Imports no torch until arguments are checked."""

from typing import Literal

from latteclip.clip.model_files import find_model, result_file
from latteclip.core.errors import UserError
from latteclip.core.files import new_folder
from latteclip.labels.fusion_report import NAME


def export(
    model: str,
    destination: str,
    /,
    format: Literal["open_clip", "transformers", "onnx"],
    abstain: float | None = None,
) -> str:
    """Write the chosen model, or another one, for open_clip, transformers or ONNX.

    Args:
        model: results/<dataset>, for the chosen model, or results/<dataset>/<method>/seed<n>/model
        destination: new or empty folder
        format: the library that loads it
        abstain: onnx: include the threshold of predict --abstain
    """
    if abstain is not None and format != "onnx":
        raise UserError("--abstain is for --format onnx.")
    folder = new_folder(destination)
    opened = find_model(model)
    if abstain is not None:
        result_file(NAME, opened, "--abstain")

    # Here, for it imports torch.
    from latteclip.deploy.export import write_model

    write_model(opened, folder, format, abstain)
    return (
        f"Wrote {destination}. To upload it: hf upload <user>/<name> {destination}"
    )
