import pyarrow as pa
import pytest

from latteclip.config import estimate
from latteclip.core import tables

RATES = estimate.Rates(captions=2.0, samples=50.0, images=300.0, fed=200.0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No dataset is indexed in the working folder, unless a test does it."""
    monkeypatch.chdir(tmp_path)


def write_index(dataset, splits, classnames):
    n = len(splits)
    columns = {column.name: pa.nulls(n, column.type) for column in tables.IMAGES}
    tables.write(
        estimate.INDEX.format(dataset=dataset),
        {**columns, "split": splits},
        tables.IMAGES,
        {"classnames": classnames},
    )


def test_hours_of_one_dataset_by_hand(configured):
    dtd = configured(dataset="dtd", method=["zero_shot", "flyp", "latteclip"], seeds=2)
    assert dtd.config["selection"]["share"] == 0.1
    assert estimate.hours(dtd, RATES) == pytest.approx(
        {
            "captions": 2 * (3948 / 2 + 180) / 3600,
            "fine-tuning": 2 * 2 * (9 * 512 * 100 / 50 + 60) / 3600,
            "evaluation and pseudo-labels": (5640 / 200 + 4 * (1692 / 200 + 60)) / 3600,
        }
    )


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({"groups": {"groups_per_class": 3}}, (3948 + 3 * 47) / 2 + 2 * 180),
        ({"groups": {"groups_per_class": 300}}, 2 * (3948 / 2 + 180)),
        ({"captions": {"shards": 8}}, 2 * (3948 / 2 + 8 * 180)),
        ({"captioner": {"tensor_parallel_size": 2}}, 4 * (3948 / 2 + 180)),
        ({"captioner": {"engine": "openai"}}, 0),
        ({"method": "flyp"}, 0),
        (
            {"method": "flyp_fused", "scores": {"kind": "letters", "share": 0.25}},
            0.25 * 2 * 3948 / 2 + 180,
        ),
    ],
)
def test_what_captions_take(configured, given, seconds):
    found = estimate.hours(configured(**{"dataset": "dtd", "method": "latteclip", **given}), RATES)
    assert found["captions"] == pytest.approx(seconds / 3600)


def test_images_are_those_of_the_index_or_else_of_the_file(configured, tmp_path):
    (tmp_path / "photographs").mkdir()
    own = configured(dataset="mine", image_dir="photographs")
    assert estimate.counts(own, "dtd") == estimate.Counts(3948, 1692, 47)
    assert estimate.counts(own, "demo") == estimate.Counts(1500, 2100)
    assert estimate.counts(own, "mine") is None
    assert set(estimate.hours(own, RATES).values()) == {0.0}
    write_index("mine", ["train", "val", "test", "train"], ["a", "b"])
    assert estimate.counts(own, "mine") == estimate.Counts(3, 1, 2)


def test_disk_counts_archives_models_and_what_is_unknown(configured):
    found = configured(dataset=["dtd", "ucf101"], method=["flyp", "zero_shot"], seeds=3)
    sizes = estimate.Sizes(captioner=10.0, clip=1.0, tuned=0.5)
    # zero_shot's model is assembled, for it may be chosen.
    assert estimate.disk(found, sizes) == {
        "archives (of ucf101 unknown)": 0.62,
        "unpacked images": 0.62,
        "models of the hub": 11.0,
        "8 tuned models": 4.0,
    }
