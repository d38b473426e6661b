"""How many steps an epoch has."""

import math


def steps_per_epoch(n: int, batch_size: int, multiple: int = 1) -> int:
    """Batches that hold n images, the last one filled up, and then up to a multiple."""
    batches = math.ceil(n / batch_size)
    return math.ceil(batches / multiple) * multiple
