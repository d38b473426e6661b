import pytest
from support.tiny import write_index

from latteclip.config import demands


def test_memory_grows_with_the_images_and_with_each_attempt():
    assert demands.memory("evaluate", 0, 1) == 8_000
    assert demands.memory("evaluate", 2_000_000, 1) == 24_000
    assert demands.memory("evaluate", 2_000_000, 3) == 54_000


def test_a_training_has_room_for_the_pictures_it_keeps_and_for_each_process(configured):
    def asked(**changes):
        beside = demands.training_memory(configured(**changes), "dtd")
        return demands.memory("finetune", 1_000_000, 1, beside)

    usual = asked()
    assert usual == 24_000
    assert asked(compute={"cache_gib": 100}) == usual + 96_000
    assert asked(processes={"finetune": 8}) == usual + 7 * 6_000


def test_time_grows_with_images_passes_and_attempts():
    assert demands.minutes("finetune", 0, 1, 1) == 20
    assert demands.minutes("finetune", 12_000, 10, 1) == 20 + 10
    assert demands.minutes("finetune", 12_000, 10, 2) == 60


def test_images_are_those_of_the_file_until_there_is_an_index(configured, tmp_path):
    counts = configured().dataset("dtd")["split"]["counts"]
    expected = demands.images_expected(configured(), "dtd")
    assert expected == counts["train"] + counts["test"]
    assert demands.images_expected(configured(), "demo") == 0
    index = tmp_path / "images.parquet"
    with pytest.raises(FileNotFoundError, match=r"images\.parquet"):
        demands.images_indexed(str(index))
    write_index(index, ["a.png", "b.png", "c.png"], ["train"] * 3, [0, 1, 0], ["x", "y"])
    assert demands.images_indexed(str(index)) == 3


@pytest.mark.parametrize(("engine", "gpus"), [("vllm", 2), ("openai", 0), ("file", 0)])
def test_only_an_engine_that_loads_a_model_has_gpus(configured, engine, gpus):
    found = configured(captioner={"engine": engine, "tensor_parallel_size": 2})
    assert demands.captioner_gpus(found, "dtd") == gpus


def test_passes_and_processes_are_those_of_the_configuration(configured):
    found = configured(finetune={"epochs": 7}, processes={"finetune": 3})
    assert demands.epochs(found, "dtd", "flyp") == 7
    assert demands.processes(found, "dtd") == 3
    assert demands.one(found) == 1
    assert demands.share_of_shard(found, shards="4") == 0.25
    assert demands.share_of_shard(found) == 1


def test_images_are_asked_about_in_every_order_and_by_their_share(configured):
    by_letters = configured(scores={"kind": "letters", "orders": 3, "share": 0.5})
    assert demands.questions_per_image(by_letters, "dtd") == 1.5
    assert demands.questions_per_image(by_letters, "dtd", shards="3") == 0.5
    likelihood = configured(scores={"kind": "likelihood", "orders": 3, "share": 0.5})
    assert demands.questions_per_image(likelihood, "dtd") == 0.5


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
        ({**ALONE, "seeds": 9}, 64, 4, 16),
        ({**ALONE, "seeds": 9, "processes": {"finetune": 2}}, 64, 4, 32),
        ({**ALONE, "seeds": 9}, 16, 8, 8),  # never fewer than the configuration says
    ],
)
def test_trainings_beside_gpus_share_out_the_cores(configured, given, cores, gpus, threads):
    assert demands.training_threads(configured(**given), "dtd", cores, gpus) == threads


def test_a_job_s_cores_are_spread_over_its_gpus():
    assert [demands.cores_per_gpu(8, gpus) for gpus in (0, 1, 2, 3)] == [8, 8, 4, 3]


@pytest.mark.parametrize(
    ("shards", "cores", "gpus", "threads", "warns"),
    [
        (4, 4, 4, 1, False),
        (4, 16, 4, 4, False),
        (4, 64, 4, 8, False),  # as the configuration says
        (4, 16, 1, 8, True),  # one after the other
        (4, 2, 4, 1, True),
        (1, 4, 1, 4, False),
        (1, 4, None, 4, False),
    ],
)
def test_shards_share_out_the_cores_among_the_gpus(configured, shards, cores, gpus, threads, warns):
    found = configured(dataset="dtd", method="latteclip", captions={"shards": shards})
    assert demands.caption_threads(found, "dtd", cores, gpus) == threads
    assert bool(demands.too_few_for_shards(found, "dtd", cores, gpus or 1)) == warns
