import io
from base64 import b64decode

import pandas as pd
import pytest
from PIL import Image
from support.made_results import Results

from latteclip.report import gallery, runs

CHOSEN = [3, 17, 30]


@pytest.mark.parametrize("kind", ["image", "group"])
def test_chosen_images_have_their_captions_however_many_rows_are_read(
    tmp_path, kind, monkeypatch
):
    results = Results(tmp_path)
    train, _, _ = runs.read_splits(results.images, results.pseudo_labels)
    path = results.write_captions(kind)
    texts = gallery.read_captions(path, train, CHOSEN)
    table = pd.read_parquet(path)
    label_of = dict(zip(results.image_ids, results.before, strict=True))
    for i in CHOSEN:
        of_text = table[table["caption"] == texts[i]]
        members = {name for names in of_text["members"] for name in names}
        assert results.before[i] in {label_of[name] for name in members}
        if kind == "image":
            assert results.image_ids[i] in members
    monkeypatch.setattr(gallery, "ROWS", 3)
    assert gallery.read_captions(path, train, CHOSEN) == texts


def test_a_large_picture_is_scaled_and_a_small_one_is_not():
    for size, scaled in (((700, 500), (320, 229)), ((64, 48), (64, 48))):
        shown = gallery.picture(Image.new("RGB", size, "red"), 320)
        data = b64decode(shown.uri.removeprefix("data:image/webp;base64,"))
        assert Image.open(io.BytesIO(data)).size == (shown.width, shown.height) == scaled
