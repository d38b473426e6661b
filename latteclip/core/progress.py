"""A steady line of progress for everything that takes longer than a few seconds."""

import logging
import time

from tqdm import tqdm

log = logging.getLogger(__name__)


class Progress:
    """Counts finished items and logs a bar with rate and time left, at most every few seconds.

    Each time a line of its own, not a bar that redraws itself: the jobs of one Snakemake run share
    the terminal, and the same line must read well in a log file.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        every: float = 5.0,
        *,
        done: int = 0,
        scale: bool = False,
    ) -> None:
        """Start the clock.

        Args:
            total: items in all; None where it is not known.
            unit: what is counted.
            every: seconds between two lines.
            done: items of an earlier run: they count, but not towards the rate.
            scale: write 1.2M for 1200000.
        """
        self.total, self.unit, self.every = total, unit, every
        self.done = self.initial = done
        self.scale = scale
        self.started = self.logged = time.monotonic()

    def restart(self) -> None:
        """Start the clock anew, after a preparation that says nothing about the rate."""
        self.started = self.logged = time.monotonic()

    def held(self, n: int) -> None:
        """Count `n` items that an earlier run finished, but not towards the rate."""
        self.done += n
        self.initial += n

    def add(self, n: int, note: str = "") -> None:
        """Count `n` more items; `note` is appended to the line when one is due."""
        self.done += n
        now = time.monotonic()
        if now - self.logged >= self.every or (
            self.done == self.total and self.logged > self.started
        ):
            self.logged = now
            meter = tqdm.format_meter(
                self.done,
                self.total,
                now - self.started,
                ncols=90,
                unit=self.unit if self.scale else f" {self.unit}",
                unit_scale=self.scale,
                initial=self.initial,
            )
            log.info("%s %s", meter, note)
