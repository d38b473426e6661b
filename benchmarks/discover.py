"""Classes that nobody named, by what a real model called the images.

    python benchmarks/discover.py FOLDER [--json FILE] [--actions] [--wordnet DATA_NOUN]
    python benchmarks/discover.py --scale N [--nouns 5000]

FOLDER holds sets as of `real_models.py`: `<set>.jsonl`, one image a line with `class`, and
`<set>_clip_vitb32.npy`, features [N, D] of a real CLIP. Each set is grouped by each kind of names
that it has: `caption`, and each prompt of other keys whose values are answers by prompt, such as
`qwen25vl3b`. The names of the classes are never shown to the method, and only score.

Printed for each kind of names: classes, Hungarian accuracy in percent and normalised mutual
information of the answers as they are (`answers`), of k-means of looks with the true number
(`looks`), and of the classes that are proposed, with the true number given (`given`) and found by
itself (`found`). `first` are the three names that stand for most images. With `--actions`, also the
accuracy after 20 and 50 questions of the page, answered by the true classes of most images. With
`--wordnet`, the file `data.noun` of WordNet, also the share of the classes found whose name is
right for the true class of most of their images (see wordnet.py), and the names that are not.

With `--scale`, N random images of a thousand classes get one of so many nouns, half of them with an
adjective, and a fifth the noun of any class. Printed are the seconds and the peak of the memory of
each part of the proposal.
"""

import argparse
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from wordnet import RIGHT, WRONG, WordNet

from latteclip.discover import proposal
from latteclip.discover.grouping import Evidence
from latteclip.discover.names import phrases, read_names
from latteclip.discover.proposal import Action, Proposal, propose
from latteclip.labels.label_sources import whiten

SEEDS = 5  # of k-means
ITERATIONS = 40
ACTIONS = (20, 50)
# Of the invented images.
CLASSES = 1000
WIDTH = 512
ADJECTIVES = 300
Figures = dict[str, Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Named:
    """Images with true classes, features, and one answer each."""

    name: str
    features: npt.NDArray[np.float32]  # [N, D] L2-normalised
    truth: Ints  # [N]
    answers: list[str]
    classes: list[str]  # names of the true classes


def read(folder: Path) -> Iterator[Named]:
    """Return each set with each kind of names, of the images that have such names."""
    for path in sorted(folder.glob("*.jsonl")):
        file = folder / f"{path.stem}_clip_vitb32.npy"
        if not file.is_file():
            continue
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        features = np.load(file).astype(np.float32)
        features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
        kinds = dict.fromkeys(kind for row in rows for kind in _answers(row))
        if not kinds:
            print(f"{path.stem} has no answers and is left out.", file=sys.stderr)
        for kind in kinds:
            kept = [i for i, row in enumerate(rows) if kind in _answers(row)]
            classes, truth = np.unique(
                [rows[i]["class"] for i in kept], return_inverse=True
            )
            answers = [str(_answers(rows[i])[kind]) for i in kept]
            name = f"{path.stem} {kind}"
            truth = truth.astype(np.int64)
            yield Named(name, features[kept], truth, answers, classes.tolist())


def _answers(row: dict[str, Any]) -> dict[str, str]:
    """Return the answers about an image by their kinds."""
    found = {"caption": row["caption"]} if row.get("caption") else {}
    for key, value in row.items():
        if isinstance(value, dict):
            answers = {f"{key} {prompt}": answer for prompt, answer in value.items()}
            found |= {kind: text for kind, text in answers.items() if isinstance(text, str)}
    return found


def scored(labels: Sequence[Any] | Ints, truth: Ints) -> Figures:
    """Return classes, Hungarian accuracy in percent and normalised mutual information."""
    _, places = np.unique(labels, return_inverse=True)
    table = np.zeros((places.max() + 1, truth.max() + 1))
    np.add.at(table, (places, truth), 1)
    rows, columns = linear_sum_assignment(-table)
    shares = table / len(truth)
    alone = shares.sum(axis=1, keepdims=True) * shares.sum(axis=0, keepdims=True)
    has = shares > 0
    mutual = (shares[has] * np.log(shares[has] / alone[has])).sum()
    entropies = _entropy(shares.sum(axis=0)) + _entropy(shares.sum(axis=1))
    return {
        "classes": len(table),
        "hungarian": round(100 * float(shares[rows, columns].sum()), 1),
        "nmi": round(float(2 * mutual / max(entropies, 1e-9)), 3),
    }


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    has = shares[shares > 0]
    return float(-(has * np.log(has)).sum())


def by_looks(features: npt.NDArray[np.float32], n_classes: int) -> Ints:
    """Return the best of SEEDS runs of k-means on centred features, by squared distances."""
    x = features - features.mean(axis=0)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    runs = [
        kmeans2(x, n_classes, minit="++", seed=s, iter=ITERATIONS) for s in range(SEEDS)
    ]
    best: Ints = min(runs, key=lambda run: ((x - run[0][run[1]]) ** 2).sum())[1]
    return best


def measure(data: Named, *, actions: bool, wordnet: WordNet | None) -> Figures:
    """Return the figures of a set with one kind of names."""
    n_classes = int(data.truth.max()) + 1
    plain = ["; ".join(phrases(answer)) for answer in data.answers]
    figures: Figures = {
        "answers": scored(plain, data.truth),
        "looks": scored(by_looks(data.features, n_classes), data.truth),
    }
    start = time.perf_counter()
    looks = whiten(torch.from_numpy(data.features.copy())).centred[:].numpy()
    evidence = Evidence.of(looks, read_names(data.answers))
    found = propose(evidence)
    given = propose(evidence, n_classes)
    figures["given"] = scored(given.labels(), data.truth)
    figures["found"] = scored(found.labels(), data.truth)
    figures["seconds"] = round((time.perf_counter() - start) / 2, 1)
    sizes = np.bincount(found.labels())
    figures["names"] = [
        [found.names[k][0], int(sizes[k])] for k in np.argsort(-sizes, kind="stable")
    ]
    if actions:
        figures["actions"] = after_actions(found, data.truth)
    if wordnet is not None:
        figures["relations"] = related(found, data, wordnet)
        figures["shown"] = shown_right(found, data, wordnet)
    return figures


def related(found: Proposal, data: Named, wordnet: WordNet) -> dict[str, list[str]]:
    """Return the names of classes, each with the true class, by how the two relate."""
    labels = found.labels()
    relations: dict[str, list[str]] = {kind: [] for kind in (*RIGHT, *WRONG)}
    for k, names in enumerate(found.names):
        truth = data.classes[_most_frequent(data.truth[labels == k])]
        relations[wordnet.relation(names[0], truth)].append(f"{names[0]} ({truth})")
    return relations


def shown_right(found: Proposal, data: Named, wordnet: WordNet) -> float:
    """Return the share of classes of which the name or a runner-up is right, in percent."""
    labels = found.labels()
    truths = [
        data.classes[_most_frequent(data.truth[labels == k])]
        for k in range(len(found.names))
    ]
    right = [
        any(wordnet.relation(name, truth) in RIGHT for name in names)
        for names, truth in zip(found.names, truths, strict=True)
    ]
    return round(100 * float(np.mean(right)), 1)


def show_relations(results: dict[str, Figures]) -> None:
    """Print the share of right names, with the wrong ones, and all names that count as right."""
    right: dict[str, set[str]] = {kind: set() for kind in RIGHT}
    for name, found in results.items():
        relations = found["relations"]
        n_right = sum(len(relations[kind]) for kind in RIGHT)
        wrong = [one for kind in WRONG for one in relations[kind]]
        share = 100 * n_right / (n_right + len(wrong))
        print(
            f"{name}: {share:.0f} % of names right, {found['shown']:.0f} % with runners-up; not "
            f"{', '.join(wrong)}"
        )
        for kind in RIGHT:
            right[kind].update(relations[kind])
    for kind in RIGHT[1:]:
        print(f"{kind}: {', '.join(sorted(right[kind]))}")


def after_actions(found: Proposal, truth: Ints) -> dict[str, float]:
    """Return the accuracy after some questions of the page, which true classes answer."""
    state = proposal.start(found)
    figures = dict[str, float]()
    for number in range(1, max(ACTIONS) + 1):
        if not (first := proposal.questions(found, state, 1)):
            break
        question = first[0]
        if question.do == "merge":
            sides = state.leaves[question.of], state.leaves[question.other or 0]
        else:
            sides = proposal.split(state.leaves[question.of], found.tree) or ([], [])
        is_same = (
            len({_most_frequent(truth[np.isin(found.leaves, one)]) for one in sides}) == 1
        )
        do = question.do if is_same == (question.do == "merge") else "keep"
        proposal.apply(state, Action(do=do, of=question.of, other=question.other), found)
        if number in ACTIONS:
            labels = found.labels([state.leaves[k] for k in sorted(state.leaves)])
            figures[str(number)] = scored(labels, truth)["hungarian"]
    return figures


def _most_frequent(labels: Ints) -> int:
    [(label, _)] = Counter(labels.tolist()).most_common(1)
    return int(label)


def scale(n: int, nouns: int) -> None:
    """Print what the parts of a proposal take for n made images."""
    looks, answers = made(n, nouns)
    started = time.perf_counter()
    print("| part | seconds | GiB |\n|---|---:|---:|", flush=True)

    def row(part: str) -> None:
        nonlocal started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = time.perf_counter() - started
        print(f"| {part} | {seconds:.0f} | {memory:.1f} |", flush=True)
        started = time.perf_counter()

    names = read_names(answers)
    row(f"names: {len(names.terms)} terms")
    evidence = Evidence.of(looks, names)
    row("weights of terms")
    found = propose(evidence)
    row(f"groups, merges and names: {len(found.classes)} classes")
    proposal.questions(found, proposal.start(found), 40)
    row("questions of the page")


def made(n: int, nouns: int) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return features [n, WIDTH] of mean length 1 and answers of random images."""
    rng = np.random.default_rng(0)
    truth = np.arange(n) % CLASSES
    centres = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    looks = centres[truth]
    for start in range(0, n, CLASSES):
        part = looks[start : start + CLASSES]
        part += 1.2 * rng.normal(size=part.shape)
    looks -= looks.mean(axis=0)
    looks /= np.linalg.norm(looks, axis=1).mean()
    named = np.where(rng.random(n) < 0.2, rng.integers(CLASSES, size=n), truth)
    synonym = rng.integers(max(1, nouns // CLASSES), size=n)
    adjective = rng.integers(ADJECTIVES, size=n)
    answers = [f"noun{named[i]}x{synonym[i]}" for i in range(n)]
    answers[::2] = [f"adjective{adjective[i]} {answers[i]}" for i in range(0, n, 2)]
    return looks, answers


def show(results: dict[str, Figures]) -> None:
    """Print a table, and the means over the prompts of each set."""
    kinds = ("answers", "looks", "given", "found")
    print(f"| names | {' | '.join(kinds)} | actions | first |\n{'|---' * 7}|")
    for name, found in results.items():
        cells = ["{classes}: {hungarian} ({nmi})".format(**found[kind]) for kind in kinds]
        after = ", ".join(f"{n}: {value}" for n, value in found.get("actions", {}).items())
        first = ", ".join(name for name, _ in found["names"][:3])
        print(f"| {name} | {' | '.join(cells)} | {after} | {first} |")
    groups: dict[str, list[Figures]] = {}
    for name, found in results.items():
        groups.setdefault(name.rpartition(" ")[0], []).append(found)
    for name, each in groups.items():
        if len(each) > 1:
            for kind in ("given", "found"):
                values = [found[kind]["hungarian"] for found in each]
                print(f"{name}, {kind}: mean {np.mean(values):.1f}, worst {min(values)}")


def main() -> None:
    """Measure each set of a folder with each kind of its names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--scale", type=int, metavar="N")
    parser.add_argument("--nouns", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--actions", action="store_true")
    parser.add_argument("--wordnet", type=Path, metavar="DATA_NOUN")
    args = parser.parse_args()
    if args.scale:
        scale(args.scale, args.nouns)
        return
    if args.folder is None:
        parser.error("give a folder, or --scale.")
    wordnet = WordNet(args.wordnet) if args.wordnet else None
    results: dict[str, Figures] = {}
    for data in read(args.folder):
        results[data.name] = measure(data, actions=args.actions, wordnet=wordnet)
        if args.json:  # written after each, for a run may be ended
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    if not results:
        parser.error(f"{args.folder} holds no set of the layout that --help describes.")
    show(results)
    if wordnet is not None:
        show_relations(results)


if __name__ == "__main__":
    main()
