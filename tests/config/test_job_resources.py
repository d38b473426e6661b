import pyarrow as pa
import pytest

from latteclip.config import job_resources
from latteclip.core import tables


def test_memory_grows_with_the_images_and_with_each_attempt():
    assert job_resources.memory("evaluate", 0, 1) == 8_000
    assert job_resources.memory("evaluate", 2_000_000, 1) == 24_000
    assert job_resources.memory("evaluate", 2_000_000, 3) == 54_000


def test_a_training_has_room_for_the_pictures_it_keeps_and_for_each_process(configured):
    def asked(**changes):
        beside = job_resources.training_memory(configured(**changes), "dtd")
        return job_resources.memory("finetune", 1_000_000, 1, beside)

    usual = asked()
    assert usual == 24_000
    assert asked(compute={"cache_gib": 100}) == usual + 96_000
    assert asked(processes={"finetune": 8}) == usual + 7 * 6_000


ALONE = {"dataset": "dtd", "method": "flyp", "seeds": 1}


@pytest.mark.parametrize(
    ("given", "cores", "gpus", "threads"),
    [
        (ALONE, 64, 1, 64),  # it runs alone: all cores are its own
        (ALONE, 4, 1, 4),  # snakemake may use no more
        (ALONE, 64, None, 8),  # without a GPU as many as the configuration says
        (ALONE, 4, None, 4),
        ({**ALONE, "seeds": 3}, 64, 1, 64),  # one after the other
        ({**ALONE, "seeds": 3}, 64, 8, 21),  # all three side by side
        ({**ALONE, "seeds": 9, "processes": {"finetune": 2}}, 64, 4, 32),
        ({**ALONE, "seeds": 9}, 16, 8, 8),  # never fewer than the configuration says
    ],
)
def test_trainings_beside_gpus_share_out_the_cores(configured, given, cores, gpus, threads):
    assert job_resources.training_threads(configured(**given), "dtd", cores, gpus) == threads


@pytest.mark.parametrize(
    ("shards", "cores", "gpus", "threads", "warns"),
    [
        (4, 4, 4, 1, False),
        (4, 16, 4, 4, False),
        (4, 64, 4, 8, False),  # as the configuration says
        (4, 16, 1, 8, True),  # one after the other
        (4, 2, 4, 1, True),
        (1, 4, None, 4, False),
    ],
)
def test_shards_share_out_the_cores_among_the_gpus(configured, shards, cores, gpus, threads, warns):
    found = configured(dataset="dtd", method="latteclip", captions={"shards": shards})
    assert job_resources.caption_threads(found, "dtd", cores, gpus) == threads
    assert bool(job_resources.too_few_for_shards(found, "dtd", cores, gpus or 1)) == warns


def test_images_are_those_of_the_index_or_else_of_the_file(configured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    found = configured(dataset="mine", image_dir="photographs")
    assert job_resources.counts(found, "dtd") == job_resources.Counts(3948, 1692, 47)
    assert job_resources.counts(found, "demo") == job_resources.Counts(1500, 2100)
    assert job_resources.counts(found, "mine") is None
    splits = ["train", "val", "test", "train"]
    columns = {column.name: pa.nulls(4, column.type) for column in tables.IMAGES}
    tables.write(
        job_resources.INDEX.format(dataset="mine"),
        {**columns, "split": splits},
        tables.IMAGES,
        {"classnames": ["a", "b"]},
    )
    assert job_resources.counts(found, "mine") == job_resources.Counts(3, 1, 2)
