"""What is written and read in pieces, for datasets of a million images, equals the whole."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from latteclip.core import tables
from latteclip.core.tables import ClassesMetadata
from latteclip.labels import pseudo_label_images
from latteclip.labels.features import read_features

N, C, D = 23, 7, 5


@pytest.fixture
def labelled(tmp_path):
    """Image_ids, their features, and a function that writes their pseudo-labels."""
    names = [f"{number}.png" for number in range(N)]
    draw = torch.Generator().manual_seed(1)
    images, embeddings = (
        F.normalize(torch.randn(n, D, generator=draw), dim=1) for n in (N, C)
    )
    table = pa.table({"image_id": names, "split": ["train"] * N})

    def write(name):
        path = str(tmp_path / name)
        described = {"classnames": list("abcdefg")}
        encoded = pseudo_label_images.ZeroShot(images, embeddings, 10.0, described)
        pseudo_label_images.write_pseudo_labels(path, table, encoded)
        return path

    return names, images, write


def test_pseudo_labels_are_written_in_pieces(labelled, monkeypatch):
    _, _, write = labelled
    whole = tables.read(write("whole.parquet"), tables.PSEUDO_LABELS)
    monkeypatch.setattr(pseudo_label_images, "ROWS", 5)
    path = write("pieces.parquet")
    pieces = tables.read(path, tables.PSEUDO_LABELS)
    assert pq.ParquetFile(path).num_row_groups == 5
    assert tables.read_metadata(path, ClassesMetadata).classnames == list("abcdefg")
    for column in ("image_id", "split", "pseudo_label", "topk_labels", "image_features"):
        assert pieces[column].to_pylist() == whole[column].to_pylist()
    assert pieces["confidence"].to_pylist() == pytest.approx(
        whole["confidence"].to_pylist()
    )


@pytest.mark.parametrize("rows", [4, 100])
@pytest.mark.parametrize("wanted", [[20, 3, 4, 11, 0, 7, 7], []])
def test_features_are_read_in_pieces_and_in_the_order_asked_for(
    labelled, monkeypatch, rows, wanted
):
    names, images, write = labelled
    monkeypatch.setattr(pseudo_label_images, "ROWS", 6)
    monkeypatch.setattr("latteclip.labels.features.ROWS", rows)
    ids = pa.chunked_array([[names[i] for i in wanted]], pa.string())
    assert torch.equal(read_features(write("t.parquet"), ids)[:], images[list(wanted)])
