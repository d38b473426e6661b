"""One sure image of each likely class, which a model sees beside the question about another image.

Not in the paper: CIRCLE (arXiv 2602.23229) shows such images to LMMs.
Letters: N training images, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MAX_EXAMPLES = 7  # beside the picture: servers of decision models take 8 pictures
OTHER = 2  # images of a class that are remembered: one of them may be the image itself


@dataclass(frozen=True)
class SureImages:
    """The training images with the clearest label of each class, the clearest first."""

    of_class: Mapping[int, Sequence[int]]

    @classmethod
    def by_margin(cls, labels: np.ndarray, margins: np.ndarray) -> "SureImages":
        """Return those of N images by labels [N], and by how much the best class leads [N]."""
        images_of: dict[int, list[int]] = {}
        for image in np.argsort(-margins, kind="stable").tolist():
            of_label = images_of.setdefault(int(labels[image]), [])
            if len(of_label) < OTHER:
                of_label.append(image)
        return cls(images_of)

    def beside(self, image: int, classes: Sequence[int]) -> list[tuple[int, int]]:
        """Return an image of each class that has one, with its class; never the image itself."""
        pairs = []
        for label in classes[:MAX_EXAMPLES]:
            others = [one for one in self.of_class.get(label, ()) if one != image]
            if others:
                pairs.append((others[0], label))
        return pairs


def introduction(texts: Sequence[str]) -> str:
    """Return what is said before the question, by the description of the class of each example."""
    if not texts:
        return ""
    lines = [f"Photo {number}: {text}" for number, text in enumerate(texts, start=1)]
    return "\n".join([*lines, "The question is about the last photo.", ""])
