"""How long a training is: steps of an epoch, and "auto" for N training images."""

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
    """Return the epochs for N images: 10 from 320 to 5,000, below up to 30, above down to 3."""
    many = min(10, round(10 * math.cbrt(5_000 / max(1, n))))
    few = min(30, round(3_200 / max(1, n)))
    return max(3, many, few)


def auto_warmup_steps(steps: int) -> int:
    """Return the warm-up for a training of so many steps: a tenth, at most 50."""
    return min(50, steps // 10)
