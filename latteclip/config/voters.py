"""The voters of a dataset: the keys of each, as a layer over the sections of the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latteclip.config.methods import VOTER_KINDS, VoterKind

Entry = Mapping[str, Any]  # an item of the key `voters`
# Keys of a captioner that belong to its model, so that a voter with another one has none of them.
OF_MODEL = {"revision": None, "quantization": None}
DECISIONS = "decisions"  # a kind of voter, and the only engine that it has
# The key of a user's file, by what a captioner is asked for.
FILE_KEYS = {"captions": "captioner.images_file", "scores": "scores.file"}


@dataclass(frozen=True)
class VoterOfDataset:
    """A voter, and the table with its votes."""

    name: str
    kind: str
    # Below results/<dataset>: what a captioner answers, or the votes themselves.
    table: str
    # Key of `methods.VOTERS` if its table is one that the run has anyway: columns of FUSED_LABELS.
    column: str | None = None

    @property
    def is_by_own_job(self) -> bool:
        """Whether a job writes its table for it alone."""
        return self.column is None

    @property
    def votes(self) -> str:
        """The table of its votes below results/<dataset>."""
        return f"votes/{self.name}.parquet" if self.writes_votes else self.table

    @property
    def writes_votes(self) -> bool:
        """Whether a job of its own writes its votes: captioners score classes themselves."""
        return self.record.asks != "scores"

    @property
    def record(self) -> VoterKind:
        return VOTER_KINDS[self.kind]


def changed_sections(entry: Entry, model: str) -> dict[str, Any]:
    """Return the sections that a voter changes, beside a captioner with this model."""
    record = VOTER_KINDS[entry["kind"]]
    if record.loads_clip:
        clip = {"model": entry["model"], "pretrained": entry.get("pretrained")}
        return {"clip": clip}
    if record.asks is None:
        return {}
    captioner = dict(entry.get("captioner", {}))
    scores = dict(entry.get("scores", {}))
    if entry.get("model", model) != model:
        captioner = OF_MODEL | captioner
    captioner |= {key: entry[key] for key in ("model", "engine") if key in entry}
    if "max_images" in entry:
        asked = {"captions": captioner, "scores": scores}[record.asks]
        asked["max_images"] = entry["max_images"]
    if record.asks == "scores":
        scores["kind"] = entry["kind"]
        if entry["kind"] == DECISIONS and "file" not in entry:
            captioner.setdefault("engine", DECISIONS)
    if "file" in entry:
        section, key = FILE_KEYS[record.asks].split(".")
        {"captioner": captioner, "scores": scores}[section][key] = entry["file"]
        captioner.setdefault("engine", "file")
    prompts = {"image": entry["prompt"]} if "prompt" in entry else {}
    return {"captioner": captioner, "scores": scores, "prompts": prompts}
