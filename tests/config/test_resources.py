from latteclip.config import resources
from latteclip.data import loader


def test_memory_grows_with_the_images_and_with_each_attempt():
    assert resources.memory(16_000, 0, 1) == 16_000
    assert resources.memory(48_000, 0, 3) == 108_000


def test_memory_has_room_for_all_parts_of_batches_that_are_loaded():
    of_a_process = resources.memory(0, 1, 1)
    assert of_a_process * 1e6 >= 200e6 + (loader.AHEAD + 1) * loader.PART
    assert resources.memory(6_000, 8, 1) == 6_000 + 8 * of_a_process
