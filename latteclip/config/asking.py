"""What captioners are asked for about the images of a dataset."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath

from latteclip.config.configuration import Configuration
from latteclip.core.file_names import IMAGES, NAMES, SCORES, TABLES, voter_table


@dataclass(frozen=True)
class Asking:
    """What a captioner is asked for: captions of images or groups, names of images, or scores."""

    kind: str  # a key of TABLES
    voter: str = ""  # name of a voter; empty: the captioner of the run

    @property
    def table(self) -> str:
        """The table of the answers, below the results of a dataset."""
        return voter_table(self.voter) if self.voter else TABLES[self.kind]

    def is_pending(self, dataset: str, pending: Collection[str]) -> bool:
        """Return whether the table, or a shard of it, is among the files that a run will write."""
        results = f"results/{dataset}"
        shards = f"{results}/captions/shards/{PurePath(self.table).stem}-"
        return any(file.startswith((f"{results}/{self.table}", shards)) for file in pending)

    def max_images(self, configuration: Configuration, dataset: str) -> int | None:
        """Return about how many images the captioner is asked at most; None: about all."""
        section = "scores" if self.kind == SCORES else "captioner"
        value = configuration.section(section, dataset, self.voter)["max_images"]
        return None if value is None else int(value)


def askings(configuration: Configuration, dataset: str) -> list[Asking]:
    """Return all that captioners are asked for about the images of a dataset."""
    asked = [Asking(f"{kind}s") for kind in configuration.caption_kinds(dataset)]
    if configuration.scores_classes(dataset):
        asked.append(Asking(SCORES))
    if configuration.discovers(dataset):
        asked.append(Asking(NAMES))
    for voter in configuration.own_voters(dataset):
        if voter.record.asks is not None:
            kind = SCORES if voter.record.asks == "scores" else IMAGES
            asked.append(Asking(kind, voter.name))
    return [
        asking
        for asking in asked
        if not configuration.engine(dataset, asking.voter).reads_file
    ]
