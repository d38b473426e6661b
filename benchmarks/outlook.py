"""What 10^4 to 10^8 training images take, stage by stage: the computed rows of docs/scaling.md.

    python benchmarks/outlook.py

Nothing is run or timed. Times are images over the rates on paper of latteclip/config/estimate.py,
memory and bytes an image those that docs/scaling.md measured, drawn out in proportion.
"""

import argparse
from dataclasses import dataclass

from latteclip.config import estimate

SIZES = [10**power for power in range(4, 9)]
CARD = "A100"
CLASSES, WIDTH, EPOCHS = 1_000, 512, 50
FINGERPRINT, ANSWER, PICTURE = 608, 260, 450_000  # bytes of each
LITTLE = 0.01  # GB that are not told
BLOCKS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True)
class Stage:
    """What a stage takes of one job with a card and the cores of `estimate.CORES`."""

    name: str
    seconds: float  # for an image
    fixed_mib: float
    mib: float  # for each million images
    disk: float  # bytes for an image, temporary ones included

    def cell(self, n: int) -> str:
        """Time, memory and, where it is worth a word, disk of n images."""
        memory, disk = (self.fixed_mib + self.mib * n / 1e6) / 1024, self.disk * n / 1e9
        said = f"{_time(self.seconds * n)}, {_short(memory)} GiB"
        return f"{said}, {_short(disk)} GB" if disk >= LITTLE else said


def stages() -> list[Stage]:
    """The stages whose time grows with the images and is known on paper."""
    rates = estimate.on_paper(CARD)
    assert rates.captions and rates.samples and rates.images and rates.fed
    encoding = 1 / min(rates.images, rates.fed)
    features = 4.0 * WIDTH
    fusing = (300 + 4.3 * CLASSES) / 1e6
    return [
        Stage("index_images", 1 / rates.fed, 150, 150, 5 + FINGERPRINT),
        Stage("pseudo_label_images", encoding, 500, 300, 2 * features),
        Stage("captions of images and groups", 2 / rates.captions, 2_250, 680, 80 + 2 * ANSWER),
        Stage("label_by_captions", fusing, 1_200, 1_200, 2 * features),
        Stage("finetune", EPOCHS / min(rates.samples, rates.fed), 660, 1_800, PICTURE),
        Stage("evaluate", encoding, 500, 300, features),
        # CPU seconds, as measured.
        Stage("gather_captions", 7e-6, 220, 490, 84),
        Stage("summarize_captions", 7e-6, 210, 280, 0),
        Stage("evaluate_zero_shot", 5e-6, 190, 670, 8),
        Stage("report_dataset", 8e-6, 430, 180, 0),
    ]


def _time(seconds: float) -> str:
    size, unit = next((block for block in BLOCKS if seconds >= 2 * block[0]), BLOCKS[-1])
    return f"{_short(seconds / size)} {unit}"


def _short(value: float) -> str:
    """Two digits of a number that has no more worth reading."""
    return f"{float(f'{value:.2g}'):,.10g}"


def rows() -> list[str]:
    """The computed rows, as the page begins them."""
    return [
        f"| {stage.name} | computed | {' | '.join(stage.cell(n) for n in SIZES)} |"
        for stage in stages()
    ]


def main() -> None:
    """Print the rows."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("\n".join(rows()))


if __name__ == "__main__":
    main()
