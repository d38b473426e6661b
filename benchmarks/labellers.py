"""Several voters on real photographs: how right each is without labels, and what all are worth.

    python benchmarks/labellers.py FOLDER [--json FILE] [--sets NAME ...]

FOLDER holds what real models said of real images. Sets are found by their files:

- `<set>.jsonl` with `<set>_clip_*.npy`: one image a line, with `split`, `label` and `class`. Every
  other key is a voter: a list is its class names, of which the first votes. A text votes for the
  class that it names, if it names one alone. A mapping holds the texts of several prompts.
  Features are [N, D]. Images without a list are left out where some have one, as are those of the
  split `val`.
- `<set>_text_*.npz`, where there is one: text features `W` of the same CLIP for the classes
  `labels`. The set is then also measured on these classes alone, with zero-shot scores.
- `<folder>/*.npz`: `images`, `texts` and `labels` of several CLIPs about the same images. Each CLIP
  gives the features once, and the zero-shot labels of the others vote.

True labels only score. Of each voter: the share of right votes and what is estimated without
labels, in percent. Then right labels by the first voter and by more of them, and by all and a
planted voter. `cascade.py` measures a dear voter that sees a part of the images.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_models import NONE, SCALE, Pool, normalised, plain, rows_with_texts
from scipy.stats import spearmanr

from latteclip.clip.classifier import best_classes
from latteclip.labels.label_sources import ClipFeatures, Votes, label_votes, option_votes
from latteclip.labels.voter_estimates import ZERO_SHOT, Tests, VoterEstimate, fuse_counted
from latteclip.labels.voter_model import (
    JointFusion,
    fuse_voters,
    test_voters,
    zero_shot_labels,
)

OPTIONS = 5  # classes of an image that a CLIP scores, by default
SEEN = 0.05  # share of the images that a planted dear voter sees
NOT_VOTERS = {"split", "file", "label", "class"}
Figures = dict[str, Any]


@dataclass(frozen=True)
class Data(Pool):
    """Images of one set, and the labels [N] of each voter, NONE where it is silent."""

    voters: Mapping[str, torch.Tensor]
    # Log-probabilities [N, C] of voters that are CLIPs.
    scores: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def right_of(self, votes: torch.Tensor) -> float:
        """Return the percentage of right votes [N] among those that are given."""
        has = votes != NONE
        return round(100 * (votes == self.labels)[has].double().mean().item(), 2)

    def votes(self, names: Sequence[str] | None = None) -> dict[str, Votes]:
        """Return the votes of some voters, by default of all."""
        some = self.voters if names is None else names
        found = {name: self.votes_of(self.voters[name]) for name in some}
        for name in self.scores.keys() & found.keys():
            # As the stage of a zero-shot voter writes them.
            classes, best = best_classes(self.scores[name], OPTIONS)
            found[name] = option_votes(classes, best, self.n_classes)
        return found

    def votes_of(self, labels: torch.Tensor) -> Votes:
        """Return certain votes by labels [N]."""
        return label_votes(labels, self.n_classes)


# --- sets ----------------------------------------------------------------------------------------


def read(folder: Path) -> Iterator[Data]:
    """Return the sets of a folder."""
    for path in sorted(folder.glob("*.jsonl")):
        for features in sorted(folder.glob(f"{path.stem}_clip_*.npy")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            table = normalised(np.load(features))
            yield _of_rows(path.stem, rows, table)
            for texts in sorted(folder.glob(f"{path.stem}_text_*.npz")):
                yield _with_texts(path.stem, rows, table, texts)
    for inner in sorted(one for one in folder.iterdir() if one.is_dir()):
        yield from _of_clips(inner)


def _of_clips(folder: Path) -> Iterator[Data]:
    contents = {path.stem: np.load(path) for path in sorted(folder.glob("*.npz"))}
    tables = {
        name: (normalised(content["images"]), normalised(content["texts"]))
        for name, content in contents.items()
        if {"images", "texts", "labels"} <= set(content)
    }
    scores = {
        name: (SCALE * images @ texts.T).log_softmax(dim=1)
        for name, (images, texts) in tables.items()
    }
    for name, (images, texts) in tables.items():
        labels = torch.from_numpy(contents[name]["labels"].astype(np.int64))
        others = {one: table for one, table in scores.items() if one != name}
        said = {one: table.argmax(dim=1) for one, table in others.items()}
        whole = f"{folder.name}_{name}"
        yield Data(whole, images, labels, texts, len(texts), said, others)


def _of_rows(name: str, rows: Sequence[dict[str, Any]], features: torch.Tensor) -> Data:
    names = {plain(row["class"]): int(row["label"]) for row in rows}
    lists = {key for row in rows for key, value in row.items() if isinstance(value, list)}
    pool = [i for i, row in enumerate(rows) if any(row.get(key) for key in lists)]
    pool = pool or [i for i, row in enumerate(rows) if row["split"] != "val"]
    answers: dict[str, list[int]] = {}
    for place, i in enumerate(pool):
        for voter, answer in _answers(rows[i]):
            column = answers.setdefault(voter, [NONE] * len(pool))
            column[place] = _class_of(answer, names)
    labels = torch.tensor([rows[i]["label"] for i in pool])
    voters = {
        voter: torch.tensor(answers[voter])
        for voter in sorted(
            answers, key=lambda one: (one.split("/")[0] not in lists, "/" in one)
        )
        if max(answers[voter]) != NONE
    }
    return Data(name, features[pool], labels, None, len(names), voters)


def _answers(row: Mapping[str, Any]) -> Iterator[tuple[str, str | list[str]]]:
    for key, value in row.items():
        if key in NOT_VOTERS or not value:
            continue
        if isinstance(value, dict):
            for prompt, text in value.items():
                yield f"{key}/{prompt}", str(text)
        else:
            yield key, value


def _class_of(answer: str | list[str], names: Mapping[str, int]) -> int:
    """Return the class of the first of some names, or the one that a text names."""
    if isinstance(answer, list):
        return names.get(plain(str(answer[0])), NONE)
    text = f" {plain(answer)} "
    found = [name for name in names if f" {name} " in text]
    longest = [
        one
        for one in found
        if not any(f" {one} " in f" {two} " for two in found if one != two)
    ]
    classes = {names[name] for name in longest}
    return classes.pop() if len(classes) == 1 else NONE


def _with_texts(
    name: str, rows: Sequence[dict[str, Any]], features: torch.Tensor, path: Path
) -> Data:
    own, kept, texts = rows_with_texts(rows, path)
    found = _of_rows(f"{name}_{len(texts)}", own, features[kept])
    return replace(found, texts=texts, n_classes=len(texts))


# --- what is measured ----------------------------------------------------------------------------


def steps(data: Data) -> dict[str, list[str]]:
    """Return the voters that label together: the first, the simple ones, one prompt, and all."""
    names = list(data.voters)
    simple = [name for name in names if "/" not in name]
    prompts: dict[str, str] = {}
    for name in names:
        if "/" in name:
            prompts.setdefault(name.split("/")[0], name)
    found = {"one": names[:1], "simple": simple, "one_prompt": [*simple, *prompts.values()]}
    found["all"] = names
    distinct: dict[str, list[str]] = {}
    for key, group in found.items():
        if key == "all" or (group not in distinct.values() and group != names):
            distinct[key] = group
    return distinct


def label(
    images: ClipFeatures, votes: Mapping[str, Votes], known: Tests
) -> tuple[JointFusion, dict[str, VoterEstimate]]:
    """Label images as the workflow does, by voters of which some have been tested."""
    untested = {name: each for name, each in votes.items() if name not in known}
    tests = {**known, **test_voters(images, untested)}
    return fuse_counted(lambda some, _: fuse_voters(images, some, tests=tests), votes)


def measure(data: Data, images: ClipFeatures, tests: Tests) -> Figures:
    """Return the figures of the voters of a set, which were tested."""
    start = time.perf_counter()
    said = dict(data.voters)
    if data.texts is not None:
        said[ZERO_SHOT] = zero_shot_labels(images).long()
    labels: dict[str, float] = {}
    orders: dict[str, Figures] = {}
    for key, names in steps(data).items():
        votes = data.votes(names)
        joint, estimates = label(images, votes, tests)
        labels[key] = data.right(joint.fusion.labels)
        voters = {
            name: _figures(data, said[name], joint, name, estimate)
            for name, estimate in estimates.items()
        }
        orders[key] = order(voters)
    found: Figures = {
        "images": len(data.labels),
        "classes": data.n_classes,
        "labels": labels,
    }
    found |= {"voters": voters, "orders": orders}
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


def _figures(
    data: Data, labels: torch.Tensor, joint: JointFusion, name: str, estimate: VoterEstimate
) -> Figures:
    voter = joint.voters.get(name)
    value = estimate.value
    return {
        "true": data.right_of(labels),
        "estimated": None if value is None else round(100 * value, 2),
        "low": round(100 * estimate.low, 2),
        "high": round(100 * estimate.high, 2),
        "tells": estimate.tells,
        "answers_needed": estimate.answers_needed,
        "coverage": round(100 * (labels != NONE).double().mean().item(), 1),
        "weight": None if voter is None else round(voter.weight, 3),
        "family": None if voter is None else voter.family,
    }


def order(voters: Mapping[str, Figures]) -> Figures:
    """Return how the estimates that tell order the voters, and how far they are off.

    Nothing is returned where fewer than two voters can be told.
    """
    told = [one for one in voters.values() if one["tells"]]
    if len(told) < 2:
        return {}
    true, estimated = ([one[key] for one in told] for key in ("true", "estimated"))
    wrong = [
        abs(true[i] - true[j])
        for i in range(len(told))
        for j in range(i)
        if (true[i] - true[j]) * (estimated[i] - estimated[j]) < 0
    ]
    inside = [one["low"] <= one["true"] <= one["high"] for one in told]
    errors = [abs(a - b) for a, b in zip(true, estimated, strict=True)]
    correlation = float(spearmanr(true, estimated).statistic)
    return {
        "voters": len(told),
        # None where all are equally right.
        "rank_correlation": round(correlation, 3) if math.isfinite(correlation) else None,
        "mean_error": round(float(np.mean(errors)), 2),
        "worst_wrong_pair": max(wrong, default=0.0),
        "inside": sum(inside),
    }


def planted(data: Data, images: ClipFeatures, tests: Tests) -> Figures:
    """Return right labels by the first voters, and with each planted voter beside them."""
    names = next(group for key, group in steps(data).items() if key in ("simple", "all"))
    votes = data.votes(names)
    joint, _ = label(images, votes, tests)
    found = {"without": data.right(joint.fusion.labels)}
    for key, labels in planted_voters(data, data.voters[names[0]]).items():
        joint, _ = label(images, votes | {key: data.votes_of(labels)}, tests)
        found[key] = data.right(joint.fusion.labels)
    return found


def planted_voters(data: Data, first: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return labels [N] of voters that are made up, one of them a copy of the first."""
    draw = torch.Generator().manual_seed(0)
    n = len(data.labels)
    c = data.n_classes
    noise = torch.randint(c, (n,), generator=draw)
    shift = torch.randint(1, c, (n,), generator=draw)
    seen = torch.rand(n, generator=draw) < SEEN
    return {
        "copy": first.clone(),
        "liar": (data.labels + shift) % c,
        "noise": noise,
        "seldom": torch.where(seen, data.labels, NONE),
        "half_of_the_classes": torch.where(data.labels < c // 2, data.labels, noise),
    }


# --- tables --------------------------------------------------------------------------------------

COLUMNS = (
    "true",
    "estimated",
    "low",
    "high",
    "tells",
    "answers_needed",
    "coverage",
    "weight",
)


def show(results: Mapping[str, Figures]) -> None:
    """Print the tables."""
    print(
        f"\n| set | voter | {' | '.join(COLUMNS)} |\n" + "|---" * (2 + len(COLUMNS)) + "|"
    )
    for name, found in results.items():
        for voter, one in found["voters"].items():
            print(
                f"| {name} | {voter} | {' | '.join(_cell(one[key]) for key in COLUMNS)} |"
            )
    for key in ("labels", "orders", "planted"):
        print(f"\n{key}\n")
        for name, found in results.items():
            if found.get(key):
                cells = [f"{one} {_cell(value)}" for one, value in found[key].items()]
                print(f"| {name} | {' | '.join(cells)} |")


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def main() -> None:
    """Measure each set of a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sets", nargs="*", help="names of sets; all without it")
    parser.add_argument("--quick", action="store_true", help="without planted voters")
    args = parser.parse_args()
    results: dict[str, Figures] = {}
    for data in read(args.folder):
        if args.sets and data.name not in args.sets:
            continue
        if not data.voters:
            print(f"{data.name} has no voter and is left out.", file=sys.stderr)
            continue
        images = data.images()
        tests = test_voters(images, data.votes())
        results[data.name] = measure(data, images, tests)
        if not args.quick:
            results[data.name]["planted"] = planted(data, images, tests)
        if args.json:  # written after each set, for a run may be ended
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    if not results:
        parser.error(f"{args.folder} holds no set of the layout that --help describes.")
    show(results)


if __name__ == "__main__":
    main()
