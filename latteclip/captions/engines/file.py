"""Captions that the user brings along, in place of a captioner."""

from collections.abc import Mapping

from latteclip.captions.answers import RowOutcome
from latteclip.captions.engines.base import OWN, CaptionerSettings
from latteclip.captions.kept import fault_of_answer
from latteclip.captions.own_files import read_own
from latteclip.core.errors import UserError


class OwnCaptions:
    """The captions of images or of groups, as they are except for white space."""

    def __init__(self, settings: CaptionerSettings, *, grouped: bool) -> None:
        path = settings.groups_file if grouped else settings.images_file
        self._captions = read_captions(path, "groups" if grouped else "images")

    def __call__(self, row_id: str) -> RowOutcome:
        """What the table says of the row with this id."""
        text = self._captions.get(row_id)
        if text is None:
            error = "the file has no caption for it"
            return RowOutcome("", "error", None, 1, error, None, OWN, None)
        caption = " ".join(text.split())
        return RowOutcome(caption, "stop", None, 1, None, None, OWN, None)


def read_captions(path: str | None, kind: str) -> Mapping[str, str]:
    """Captions by image_id.

    Args:
        path: a Parquet, CSV, TSV or JSON Lines file with the columns image_id and caption.
        kind: images or groups: the key of the configuration that names the file.

    Raises:
        UserError: no such file, or another form.
    """
    key = f"captioner.{kind}_file"
    if path is None:
        raise UserError(
            f"captioner.engine file needs {key}; a method does without these captions where its "
            f"switch {kind.removesuffix('s')}_description is false."
        )
    table = read_own(path, key, ["image_id", "caption"])
    image_ids = table["image_id"].astype(str)
    twice = image_ids[image_ids.duplicated()]
    if len(twice):
        raise UserError(f"{key} {path} has two captions for {twice.iloc[0]!r}; keep one.")
    captions = dict(zip(image_ids, table["caption"].fillna("").astype(str), strict=True))
    for image_id, caption in captions.items():
        if (fault := fault_of_answer(caption, "stop", None)) is not None:
            raise UserError(f"{key} {path} has a caption for {image_id!r} that cannot be: {fault}.")
    return captions
