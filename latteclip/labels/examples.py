"""Examples: images of known classes that are not in the dataset. Not in the paper.

A person chose them to show what a class looks like, so they count as answers do. They are rows
after the N images of the dataset, without votes. Means and whitening are those of the dataset.

Letters: N images, n some rows, E examples, C classes, D embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F

from latteclip.clip.classifier import FeatureMemmap
from latteclip.core import tables
from latteclip.core.errors import DELETE_AND_RERUN, UserError
from latteclip.core.metadata import ExamplesMetadata
from latteclip.labels.label_sources import (
    CentredFeatures,
    LabelledRows,
    Rows,
    Votes,
    parts,
)

Model = TypeVar("Model", bound=CentredFeatures)


@dataclass(frozen=True)
class Examples:
    """Features of E images by some models, and their classes."""

    features: Sequence[torch.Tensor]  # [E, D] for each model
    labels: torch.Tensor  # [E]
    n_classes: int

    def add_features(self, number: int, model: Model) -> Model:
        """Return a model, the `number`-th, with rows for the examples [N + E, D]."""
        n = len(model.centred)
        features = self.features[number]
        rows = FeatureMemmap(n + len(features), features.shape[1])
        for part in parts(n):
            rows[part] = model.centred[part]
        whitened = features.double() @ model.whitening - model.mean
        rows[slice(n, None)] = (whitened / model.length).float()
        return replace(model, centred=rows)

    def add_votes(self, votes: Votes) -> Votes:
        """Return votes with rows for the examples, which have none."""
        n = len(votes.has)
        every = torch.arange(n + len(self.labels))

        def added(table: Callable[[Rows], torch.Tensor]) -> Callable[[Rows], torch.Tensor]:
            def of_rows(rows: Rows) -> torch.Tensor:
                chosen = every[rows]
                is_image = chosen < n
                of_images = table(chosen[is_image])
                values = of_images.new_zeros(len(chosen), of_images.shape[1])
                values[is_image] = of_images
                return values

            return of_rows

        texts = None if votes.text_features is None else added(votes.text_features)
        return replace(
            votes,
            has=F.pad(votes.has, (0, len(self.labels))),
            probabilities=added(votes.probabilities),
            text_features=texts,
        )

    def add_answers(self, answers: LabelledRows | None, n: int) -> LabelledRows:
        """Return the answers about N images and the classes of the examples."""
        rows = torch.arange(n, n + len(self.labels))
        shares = F.one_hot(self.labels, self.n_classes).double()
        drawn = torch.zeros(len(rows), dtype=torch.bool)
        total = n + len(rows)
        if answers is None:
            return LabelledRows(total, rows, shares, drawn)
        return LabelledRows(
            total,
            torch.cat([answers.rows, rows]),
            torch.cat([answers.shares, shares]),
            torch.cat([answers.drawn, drawn]),
        )


def read_examples(path: str, classnames: Sequence[str], models: Sequence[str]) -> Examples:
    """Return the examples of a table. UserError: it is of other classes or models."""
    table = tables.read(path, tables.EXAMPLES)
    metadata = tables.read_metadata(path, ExamplesMetadata)
    label_of = {name: label for label, name in enumerate(classnames)}
    names = table["classname"].to_pylist()
    unknown = set(names).difference(classnames)
    if unknown or metadata.models != list(models):
        raise UserError(f"{path} belongs to other classes or models; {DELETE_AND_RERUN}.")
    features = tables.from_list_column(table["image_features"])
    of_all = torch.from_numpy(features.copy())
    labels = torch.tensor([label_of[name] for name in names])
    return Examples(of_all.split(metadata.widths, dim=1), labels, len(classnames))
