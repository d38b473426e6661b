"""How fast a training runs, and how much of that is waiting for images."""

import contextlib
import time
from collections.abc import Iterator


class Pace:
    """Counts from one look at the losses to the next.

    A GPU works behind the steps that it is given; only where its results are waited for does time
    say something, so that all steps in between share one speed.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._began, self._waited, self._images = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self, images: int) -> Iterator[None]:
        """Around the wait for a batch of so many images."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began
        self._images += images

    def since_last(self) -> dict[str, float]:
        """Speed and share of waiting since the last call, as columns of the history."""
        seconds = time.monotonic() - self._began
        found = {
            "images_per_second": self._images / seconds,
            "data_wait": self._waited / seconds,
        }
        self._start()
        return found
