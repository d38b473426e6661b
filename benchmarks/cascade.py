"""A dear voter that sees a part of the images: which, and what that brings, on real photographs.

    python benchmarks/cascade.py FOLDER [--json FILE] [--sets NAME ...] [--drawings N] [--share S]

FOLDER is that of labellers.py. The first voter of a set is the dear one. Without its votes, images
are labelled by captions, or by zero-shot scores where there are texts. Its votes about a share of
the images are then added, as the stage `rank_images` chooses them in rounds, or at random. A cell
is the part of the gain that its votes about all images bring, by the true labels: mean, and lowest
and highest of the drawings. At the end, `expected` labels would change if all other images were
asked about too, and `changed` labels do.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from labellers import Data, Figures, label, read
from real_models import NONE

from latteclip.labels.cascade import Ranking, rank
from latteclip.labels.rank_images import no_votes
from latteclip.labels.voter_model import JointFusion, test_voters

ROUNDS = 3  # of the workflow, by default
SHARE = 0.25
DRAWINGS = 5
NAME = "dear"  # of the dear voter
Fuse = Callable[[torch.Tensor], JointFusion]


def cases(data: Data) -> Iterator[tuple[str, list[str]]]:
    """Yield what labels the images before the dear voter is asked."""
    simple = [name for name in data.voters if "/" not in name]
    for name in simple[1:]:
        if name == "caption":
            yield "captions", [name]
    if data.texts is not None:
        yield "zero-shot scores", []


def fuser(data: Data, dear: str, cheap: Sequence[str]) -> Fuse:
    """Return a function from the images that the dear voter sees [N] to fused labels."""
    images = data.images()
    n = len(data.labels)
    votes = data.votes(cheap) or {"nobody": no_votes(n, data.n_classes)}
    tests = test_voters(images, votes)

    def fuse(asked: torch.Tensor) -> JointFusion:
        seen = torch.where(asked, data.voters[dear], NONE)
        own = {NAME: data.votes_of(seen)} if asked.any() else {}
        joint, _ = label(images, votes | own, tests)
        return joint

    return fuse


def chosen(
    fuse: Fuse, start: JointFusion, dear: torch.Tensor, size: int, seed: int
) -> tuple[torch.Tensor, list[Ranking]]:
    """Return the images [N] that are asked about in ROUNDS, and the ranking of each round.

    `dear` are the labels [N] by the dear voter.
    """
    n = len(dear)
    has = dear != NONE
    asked = torch.zeros(n, dtype=torch.bool)
    ranking = rank(start, asked, asked)
    rankings = [ranking]
    for number in range(1, ROUNDS + 1):
        wanted = round(size * number / ROUNDS) - int(asked.sum())
        asked[ranking.order(seed=ROUNDS * seed + number)[:wanted]] = True
        joint = fuse(asked)
        unused = dear if joint.voters[NAME] is None else None
        ranking = rank(joint, asked, asked & has, ranking, unused)
        rankings.append(ranking)
    return asked, rankings


def measure(
    data: Data, dear: str, cheap: Sequence[str], share: float, drawings: int
) -> Figures:
    """Return right labels without and with all votes of the dear voter, and parts of that gain."""
    started = time.perf_counter()
    fuse = fuser(data, dear, cheap)
    n = len(data.labels)
    size = round(share * n)
    start = fuse(torch.zeros(n, dtype=torch.bool))
    without = data.right(start.fusion.labels)
    everything = fuse(torch.ones(n, dtype=torch.bool)).fusion.labels
    whole = data.right(everything)
    gain = round(whole - without, 2)
    parts: dict[str, list[float | None]] = {"chosen": [], "random": []}
    expected: list[float] = []
    changed: list[int] = []
    for seed in range(drawings):
        draw = torch.Generator().manual_seed(seed)
        random = torch.zeros(n, dtype=torch.bool)
        random[torch.randperm(n, generator=draw)[:size]] = True
        asked, rankings = chosen(fuse, start, data.voters[dear], size, seed)
        expected.append(round(float(rankings[-1].gains.sum()), 1))
        changed.append(int((everything != rankings[-1].labels)[~asked].sum()))
        for name, images in (("random", random), ("chosen", asked)):
            more = data.right(fuse(images).fusion.labels) - without
            parts[name].append(round(more / gain, 3) if gain else None)
    return {
        "images": n,
        "dear": dear,
        "without": without,
        "whole": whole,
        "gain": gain,
        **parts,
        "expected": expected,
        "changed": changed,
        "seconds": round(time.perf_counter() - started, 1),
    }


def show(results: Mapping[str, Figures]) -> None:
    """Print the table."""
    columns = [
        "set",
        "without",
        "with all",
        "gain",
        "random",
        "chosen",
        "expected",
        "changed",
    ]
    print(f"\n| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    for name, found in results.items():
        cells = [name, found["without"], found["whole"], found["gain"]]
        cells += [_spread(found[key]) for key in columns[4:]]
        print(f"| {' | '.join(map(str, cells))} |")
    for name, found in results.items():
        if found["gain"] <= 0:
            print(f"{name}: all votes of {found['dear']} gain nothing; parts say nothing.")


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "no gain"
    return f"{np.mean(known):.3g} ({min(known):.3g} to {max(known):.3g})"


def main() -> None:
    """Measure each set of a folder that has a dear voter and something before it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sets", nargs="*", help="names of sets; all without it")
    parser.add_argument("--drawings", type=int, default=DRAWINGS)
    parser.add_argument(
        "--share", type=float, default=SHARE, help="that the dear voter sees"
    )
    args = parser.parse_args()
    results: dict[str, Figures] = {}
    for data in read(args.folder):
        if args.sets and data.name not in args.sets:
            continue
        dear = next(iter(data.voters), None)
        before_it = list(cases(data)) if dear else []
        if not before_it:
            print(f"{data.name}: no voter, or nothing labels before it.", file=sys.stderr)
        for before, cheap in before_it:
            found = measure(data, str(dear), cheap, args.share, args.drawings)
            results[f"{data.name} after {before}"] = found
            if args.json:  # written after each set, for a run may be ended
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    if not results:
        parser.error(
            f"{args.folder} holds no set with a dear voter and something before it."
        )
    show(results)


if __name__ == "__main__":
    main()
