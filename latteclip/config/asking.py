"""What captioners are asked for about the images of a dataset."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath

from latteclip.config.resolve import Asker, Dataset
from latteclip.core.files import IMAGES, NAMES, SCORES, TABLES, labeller_table


@dataclass(frozen=True)
class Asking:
    """What a captioner is asked for: captions of images or groups, names of images, or scores."""

    asker: Asker
    kind: str  # a key of TABLES

    @property
    def table(self) -> str:
        """The table of the answers, below the results of a dataset."""
        name = self.asker.name
        return labeller_table(name) if name else TABLES[self.kind]

    @property
    def max_images(self) -> int | None:
        """About how many images the captioner is asked about at most; None: about all."""
        return self.asker.max_images(self.kind)

    def is_pending(self, pending: Collection[str]) -> bool:
        """Return whether the table, or a shard of it, is among the files that a run will write."""
        results = self.asker.dataset.folder
        shards = f"{results}/captions/shards/{PurePath(self.table).stem}-"
        return any(file.startswith((f"{results}/{self.table}", shards)) for file in pending)


def askings(dataset: Dataset) -> list[Asking]:
    """Return all that captioners are asked for about the images of a dataset."""
    return [each for each in answer_tables(dataset) if not each.asker.engine.reads_file]


def answer_tables(dataset: Dataset) -> list[Asking]:
    """Return all that captioners, or the user's files in their place, give for a dataset."""
    own = dataset.asker
    asked = [Asking(own, f"{kind}s") for kind in dataset.caption_kinds]
    if dataset.keys.scores.kind is not None:
        asked.append(Asking(own, SCORES))
    if dataset.discovers:
        asked.append(Asking(own, NAMES))
    for labeller in dataset.own_labellers:
        if labeller.asker is not None:
            kind = SCORES if labeller.asks == "scores" else IMAGES
            asked.append(Asking(labeller.asker, kind))
    return asked
