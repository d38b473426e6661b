"""How long a training is: steps of an epoch, and what "auto" stands for.

Letters: N training images.
"""

import math

AUTO = "auto"


def steps_per_epoch(n: int, batch_size: int, multiple: int = 1) -> int:
    """Return the batches that hold n images, the last one filled up, and then up to a multiple."""
    batches = math.ceil(n / batch_size)
    return math.ceil(batches / multiple) * multiple


def auto_batch_size(n: int) -> int:
    """Return the batch size for N images: the power of two next to N / 16, from 64 to 512."""
    exponent = round(math.log2(max(1, n) / 16))
    return min(512, max(64, int(2.0**exponent)))


def auto_epochs(n: int) -> int:
    """Return the epochs for N images: 10 for some hundreds and thousands, from 3 to 30.

    Above 5,000 images they fall with the cube root of N. Below 320 they show 3,200 images in all.
    """
    many = min(10, round(10 * math.cbrt(5_000 / max(1, n))))
    few = min(30, round(3_200 / max(1, n)))
    return max(3, many, few)


def auto_warmup_steps(steps: int) -> int:
    """Return the warm-up for a training of so many steps: a tenth, at most 50."""
    return min(50, steps // 10)
