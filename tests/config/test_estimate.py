import dataclasses

import pyarrow as pa
import pytest
import yaml
from support.tiny import ROOT

from latteclip.captions.pictures import OVERVIEW_TOKENS
from latteclip.config import estimate
from latteclip.core import tables

RATES = estimate.Rates(captions=2.0, samples=50.0, images=300.0, fed=200.0)
STUDY = yaml.safe_load((ROOT / "config" / "study.yaml").read_text())
WORK = ["captions", "fine-tuning", "evaluation and pseudo-labels"]


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


def test_the_study_is_the_sum_of_its_datasets(configured):
    whole = estimate.hours(configured(**STUDY), RATES)
    parts = [
        estimate.hours(configured(**{**STUDY, "dataset": name}), RATES)
        for name in configured(**STUDY).datasets
    ]
    assert len(parts) == 10
    assert whole == pytest.approx({work: sum(part[work] for part in parts) for work in WORK})


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


@pytest.mark.parametrize(
    ("unknown", "work"), [("captions", WORK[0]), ("samples", WORK[1]), ("images", WORK[2])]
)
def test_work_at_an_unknown_rate_has_no_hours(configured, unknown, work):
    found = estimate.hours(configured(dataset="dtd"), dataclasses.replace(RATES, **{unknown: None}))
    assert list(found) == [other for other in WORK if other != work]


def test_a_gpu_waits_for_images(configured):
    dtd = configured(dataset="dtd", method="flyp")
    slow, fast = (
        estimate.hours(dtd, dataclasses.replace(RATES, samples=samples, job_start=0.0))
        for samples in (200.0, 100_000.0)
    )
    assert fast == slow


def test_images_are_those_of_the_index_or_else_of_the_file(configured, tmp_path):
    (tmp_path / "photographs").mkdir()
    own = configured(dataset="mine", image_dir="photographs")
    assert estimate.counts(own, "dtd") == estimate.Counts(3948, 1692, 47)
    assert estimate.counts(own, "demo") == estimate.Counts(1500, 2100)
    assert estimate.counts(own, "mine") is None
    assert estimate.uncounted(own) == ["mine"]
    assert set(estimate.hours(own, RATES).values()) == {0.0}
    write_index("mine", ["train", "val", "test", "train"], ["a", "b"])
    assert estimate.counts(own, "mine") == estimate.Counts(3, 1, 2)
    assert estimate.uncounted(own) == []


def test_rates_on_paper_are_those_of_the_page():
    """docs/scaling.md, two significant digits."""
    text = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[-2:]
        for line in text.partition("### Rates")[2].splitlines()
        if line.startswith("| ")
    }
    for place, card in enumerate(("A100", "H100")):
        rates = estimate.on_paper(card)
        for row, rate in {
            "caption, LLaVA-1.6 Mistral 7B": rates.captions,
            "image encoded, ViT-B/32": rates.images,
            "training sample, ViT-B/32, LatteCLIP": rates.samples,
        }.items():
            said = float(rows[row][place].removesuffix("/s").replace(",", ""))
            assert said == float(f"{rate:.2g}"), row


def test_fewer_tokens_make_captions_faster():
    whole, half = (estimate.on_paper("A100", n) for n in (estimate.TOKENS, estimate.TOKENS // 2))
    assert half.captions == pytest.approx(2 * whole.captions, rel=1e-3)
    assert (half.samples, half.images) == (whole.samples, whole.images)


def test_pictures_as_small_as_the_overview_make_captions_faster(configured):
    assert estimate.SQUARE - OVERVIEW_TOKENS == estimate.TOKENS - 2_880
    hours = [
        estimate.hours(
            configured(dataset="dtd", method="latteclip", captioner={"square_side": side}),
            estimate.on_paper("A100", n),
        )["captions"]
        for side, n in ((336, estimate.TOKENS), (None, estimate.SQUARE))
    ]
    assert hours[0] == pytest.approx(hours[1])


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


def test_a_dataset_that_is_made_has_no_archive(configured):
    assert estimate.disk(configured(dataset="demo"), estimate.Sizes())["archives"] == 0
