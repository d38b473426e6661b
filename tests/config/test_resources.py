from latteclip.config import resources
from latteclip.data import loader


def test_memory_grows_with_each_attempt_and_has_room_for_parts_of_batches():
    assert resources.memory(48_000, 0, 3) == 108_000
    of_a_process = resources.memory(0, 1, 1)
    assert of_a_process * 1e6 >= 200e6 + (loader.AHEAD + 1) * loader.PART
