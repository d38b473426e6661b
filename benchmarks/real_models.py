"""Labels and untrained models by what real models said of real photographs.

    python benchmarks/real_models.py FOLDER [--json FILE]

FOLDER holds features of real CLIPs, and answers of a large multimodal model. Sets are found by
their files:

- `<set>.jsonl` with `<set>_clip_vitb32.npy`: one image a line, with `split`, `label`, `class` and,
  where the model was asked, `gpt4v_top5`: its class names, the best first. Features are [N, D].
  Images of the split `val` are new ones: nothing learns from them.
- `<set>_text_*.npz`, where there is one: text features `W` of the same CLIP for the classes
  `labels`. The set is then also measured on these classes alone.
- `whurs19/*.npz`: `images`, `texts` and `labels`, without answers. Half of the images are new ones
  in a second measurement.

Labels only score. A table is printed for each purpose, in percent of right labels or predictions.
`--json` writes the figures, null where there is nothing to compute.
"""

import argparse
import itertools
import json
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from latteclip.config.stage_params import candidacy
from latteclip.deploy.label_table import expected_calibration_error
from latteclip.evaluate.select_model import Candidate, HeldOutVotes, choose
from latteclip.labels.adaptation import adapt, unbiased_votes
from latteclip.labels.fusion import ROUNDS, Fusion, LabelModel, fuse
from latteclip.labels.guarantees import pac_threshold
from latteclip.labels.label_sources import (
    ClipFeatures,
    Head,
    LabelledRows,
    Votes,
    label_votes,
    whiten,
)

SCALE = 100.0  # of CLIP's cosines
NONE = -1  # no class
STEPS = 2  # rounds of learning after ten answers, as in `latteclip teach`
SEEDS = 3  # drawings of uniform answers
DRAWINGS = 500  # of images that check a promise
CHECKED = 100  # images of a drawing
Figures = dict[str, Any]


@dataclass(frozen=True)
class Pool:
    """Images that get labels."""

    name: str
    features: torch.Tensor  # [N, D]
    labels: torch.Tensor  # [N]
    texts: torch.Tensor | None  # [C, D]
    n_classes: int

    def images(self) -> ClipFeatures:
        """Return the features of all images."""
        return clip_features(self.features, self.texts, self.n_classes)

    def right(self, labels: torch.Tensor) -> float:
        """Return the percentage of images with a right label."""
        return _percent(labels == self.labels)


@dataclass(frozen=True)
class Data(Pool):
    """Images of a pool, from which labels are made, and new images."""

    new_features: torch.Tensor  # [M, D]
    new_labels: torch.Tensor  # [M]
    options: torch.Tensor | None  # [N, K] classes that were named, the best first, or NONE

    def right_new(self, images: ClipFeatures, head: Head) -> float | None:
        """Return the percentage of right predictions for new images, if there are any."""
        if not len(self.new_labels):
            return None
        scores = images.classifier(head, SCALE).scores(self.new_features)
        return _percent(scores.argmax(dim=1) == self.new_labels)


def clip_features(
    features: torch.Tensor, texts: torch.Tensor | None, n_classes: int
) -> ClipFeatures:
    """Return adapted features [N, D]. Without texts [C, D], zero-shot scores are all alike."""
    if texts is None:
        texts = torch.zeros(n_classes, features.shape[1])
    return adapt(ClipFeatures.of(features.clone(), texts, SCALE))


def _percent(right: torch.Tensor) -> float:
    return round(100 * right.double().mean().item(), 2)


# --- sets ----------------------------------------------------------------------------------------


def read(folder: Path) -> Iterator[Data]:
    """Return the sets of a folder."""
    for path in sorted((folder / "whurs19").glob("*.npz")):
        yield from _without_answers(path)
    for path in sorted(folder.glob("*.jsonl")):
        features = folder / f"{path.stem}_clip_vitb32.npy"
        if features.is_file():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            table = normalised(np.load(features))
            yield _with_answers(path.stem, rows, table)
            for texts in sorted(folder.glob(f"{path.stem}_text_*.npz")):
                yield _with_texts(path.stem, rows, table, texts)


def _without_answers(path: Path) -> Iterator[Data]:
    content = np.load(path)
    features, texts = (normalised(content[key]) for key in ("images", "texts"))
    labels = torch.from_numpy(content["labels"].astype(np.int64))
    nothing = slice(0, 0)
    n = len(texts)
    name = f"{path.parent.name}_{path.stem}"
    new = features[nothing], labels[nothing]
    yield Data(name, features, labels, texts, n, *new, None)
    is_new = torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < 0.5
    pool = features[~is_new], labels[~is_new]
    new = features[is_new], labels[is_new]
    yield Data(f"{name}_half", *pool, texts, n, *new, None)


def _with_answers(
    name: str, rows: Sequence[dict[str, Any]], features: torch.Tensor
) -> Data:
    names = {plain(row["class"]): int(row["label"]) for row in rows}
    pool = [i for i, row in enumerate(rows) if row.get("gpt4v_top5")]
    if not pool:  # images without answers
        pool = [i for i, row in enumerate(rows) if row["split"] != "val"]
    new = [i for i, row in enumerate(rows) if row["split"] == "val"]
    labels = torch.tensor([row["label"] for row in rows])
    answers = [[names.get(plain(one), NONE) for one in _named(rows[i])] for i in pool]
    options = torch.full((len(pool), max(1, *map(len, answers))), NONE)
    for place, classes in enumerate(answers):
        known = list(dict.fromkeys(one for one in classes if one != NONE))
        options[place, : len(known)] = torch.tensor(known, dtype=torch.long)
    given = options if (options != NONE).any() else None
    own = features[pool], labels[pool]
    others = features[new], labels[new]
    return Data(name, *own, None, len(names), *others, given)


def _with_texts(
    name: str, rows: Sequence[dict[str, Any]], features: torch.Tensor, path: Path
) -> Data:
    own, kept, texts = rows_with_texts(rows, path)
    found = _with_answers(f"{name}_{len(texts)}", own, features[kept])
    return replace(found, texts=texts, n_classes=len(texts))


def rows_with_texts(
    rows: Sequence[dict[str, Any]], path: Path
) -> tuple[list[dict[str, Any]], list[int], torch.Tensor]:
    """Return the rows of classes that have a text, their places, and the texts [C, D].

    Labels are renumbered in the order of the texts.
    """
    content = np.load(path)
    number = {int(label): place for place, label in enumerate(content["labels"])}
    kept = [i for i, row in enumerate(rows) if row["label"] in number]
    own = [{**rows[i], "label": number[rows[i]["label"]]} for i in kept]
    return own, kept, normalised(content["W"])


def _named(row: dict[str, Any]) -> list[str]:
    answers = row.get("gpt4v_top5") or []
    return [answers] if isinstance(answers, str) else [str(one) for one in answers]


def plain(name: str) -> str:
    """Return a class name as names are compared: letters and digits in lower case."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def normalised(table: np.ndarray) -> torch.Tensor:
    """Return rows of length 1."""
    return F.normalize(torch.from_numpy(table.astype(np.float32)), dim=1)


# --- what is measured ----------------------------------------------------------------------------


def untrained(data: Data) -> Figures:
    """Return the accuracy of zero-shot and adapted classifiers, with that of a peer."""
    if data.texts is None:
        return {}
    images = data.images()
    head = images.adapted
    predicted = head.logits(images.centred[:].double()).argmax(dim=1)
    raw = Head(images.texts.weights, images.text_bias)
    return {
        "zero_shot": data.right((data.features @ data.texts.T).argmax(dim=1)),
        "zero_shot_new": data.right_new(images, raw),
        "untrained": data.right(predicted),
        "untrained_new": data.right_new(images, head),
        "transclip": data.right(transclip(data)),
    }


def labels_of_votes(data: Data) -> Figures:
    """Return the accuracy of first answers, of labels by them, and by all answers as scores."""
    if data.options is None:
        return {}
    images = data.images()
    found = fuse(images, first_votes(data))
    figures = {
        "votes": data.right(data.options[:, 0]),
        "labels": data.right(found.labels),
        "new": data.right_new(images, found.head),
        "expected_calibration_error": calibration_error(data, found),
        "crowdlab": data.right(crowdlab(data)),
        "trust_in_images": round(found.parameters.independence, 3),
    }
    for key, nats in (("five_answers", 1.5), ("class_scores", 3.0)):
        scored = fuse(images, ranked_votes(data, images, nats))
        figures[key] = data.right(scored.labels)
        figures[f"{key}_new"] = data.right_new(images, scored.head)
    return figures


def first_votes(data: Data) -> Votes:
    """Return the first answers as votes that are certain."""
    assert data.options is not None
    first = data.options[:, 0]
    table = F.one_hot(first.clamp(min=0), data.n_classes).double() * (first >= 0)[:, None]
    return Votes(first >= 0, table.__getitem__)


def ranked_votes(data: Data, images: ClipFeatures, nats: float) -> Votes:
    """Return all answers as class scores that fall by so many nats a rank."""
    assert data.options is not None
    ranks = torch.arange(data.options.shape[1], dtype=torch.float32)
    scores = torch.where(data.options >= 0, -nats * ranks, -torch.inf)
    return unbiased_votes(images, data.options, scores)


def answers(data: Data) -> Figures:
    """Return what answers of a person add, which are simulated by the true classes."""
    if data.options is None:
        return {}
    images = data.images()
    before = fuse(images, first_votes(data))
    model = LabelModel(images, first_votes(data))
    model.learn(ROUNDS)
    asked = by_margin(data, model, 100)
    drawn = [
        torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))[
            :100
        ]
        for seed in range(SEEDS)
    ]
    taught = {"margin20": [asked[:20]], "margin100": [asked], "uniform100": drawn}
    found = {}
    for key, drawings in taught.items():
        each = [_taught(data, images, before, rows) for rows in drawings]
        columns = ("all", "unasked", "unasked_before", "new")
        values = {column: [one[column] for one in each] for column in columns}
        found[key] = {
            column: round(float(np.mean(one)), 2) for column, one in values.items()
        }
    return {"answers": found}


def by_margin(data: Data, model: LabelModel, n: int) -> torch.Tensor:
    """Return the rows with the smallest margins, ten at a time, between which the model learns."""
    asked = torch.empty(0, dtype=torch.long)
    while len(asked) < n:
        best = model.log_posterior(slice(None)).exp().topk(2, dim=1).values
        margins = best[:, 0] - best[:, 1]
        margins[asked] = torch.inf
        asked = torch.cat([asked, margins.argsort()[:10]])
        model = model.answered(_labelled(data, asked))
        for _ in range(STEPS):
            model.step()
    return asked[:n]


def _labelled(data: Data, rows: torch.Tensor) -> LabelledRows:
    rows = rows.sort().values
    shares = F.one_hot(data.labels[rows], data.n_classes).double()
    return LabelledRows(
        len(data.labels), rows, shares, torch.zeros(len(rows), dtype=torch.bool)
    )


def _taught(
    data: Data, images: ClipFeatures, before: Fusion, rows: torch.Tensor
) -> Figures:
    after = fuse(images, first_votes(data), labelled=_labelled(data, rows))
    unasked = torch.ones(len(data.labels), dtype=torch.bool)
    unasked[rows] = False
    return {
        "all": data.right(after.labels),
        "unasked": _percent((after.labels == data.labels)[unasked]),
        "unasked_before": _percent((before.labels == data.labels)[unasked]),
        "new": data.right_new(images, after.head),
    }


def guarantees(data: Data) -> Figures:
    """Return how often a promise about the labels is kept, and the share that nobody needs to see.

    In each of DRAWINGS, CHECKED images are drawn, and `labels export --max-error` is applied.
    """
    if data.options is None:
        return {}
    found = fuse(data.images(), first_votes(data))
    right = (found.labels == data.labels).numpy()
    confidence = found.confidence.double().numpy()
    figures = {}
    for error in (0.05, 0.1, 0.2):
        kept = []
        taken = []
        for seed in range(DRAWINGS):
            drawn = np.random.default_rng(seed).permutation(len(right))[:CHECKED]
            accepted = confidence >= pac_threshold(confidence[drawn], ~right[drawn], error)
            accepted[drawn] = False
            kept.append((~right & accepted).sum() <= error * len(right))
            taken.append(accepted.sum() / (len(right) - CHECKED))
        shares = (round(100 * float(np.mean(one)), 1) for one in (kept, taken))
        figures[str(error)] = dict(zip(("kept", "taken"), shares, strict=True))
    return {"guarantees": figures}


def choice(data: Data) -> Figures:
    """Return the accuracy on new images of the untrained classifier that votes choose."""
    if data.options is None or data.texts is None:
        return {}
    images = data.images()
    votes = first_votes(data)
    found = fuse(images, votes)
    x = images.centred[:].double()
    raw = Head(images.texts.weights, images.text_bias)
    predicted = [head.logits(x).argmax(dim=1) for head in (raw, images.adapted)]
    names = ("zero_shot", "zero_shot_adapted", "image_prototypes")
    heads = dict(zip(names, (raw, images.adapted, found.head), strict=True))
    table = torch.stack([*predicted, found.predicted])[:, votes.has]
    shares = found.parameters.classes(votes.probabilities(votes.has))
    candidates = [Candidate(name, 0, **candidacy(name)) for name in names]
    chosen = names[
        choose(candidates, HeldOutVotes(shares.numpy(), table.numpy()), None).index
    ]
    accuracies = {name: data.right_new(images, head) for name, head in heads.items()}
    return {"choice": {"chosen": chosen, **accuracies}}


def calibration_error(data: Data, found: Fusion) -> float:
    """Return the expected calibration error of the labels' probabilities."""
    right = (found.labels == data.labels).double()
    confidence = found.confidence.double()
    ones = torch.ones_like(confidence)
    arrays = (part.numpy() for part in (confidence, right, ones))
    return round(expected_calibration_error(*arrays), 3)


# --- peers ---------------------------------------------------------------------------------------


def transclip(data: Data, neighbours: int = 3, rounds: int = 10) -> torch.Tensor:
    """Return labels by the zero-shot rule of TransCLIP (arXiv 2406.01837), written from its paper.

    Gaussian classes share a diagonal covariance. A Laplacian over the nearest images and a term
    towards the zero-shot probabilities regularise the assignments.
    """
    assert data.texts is not None
    x = data.features.double()
    texts = data.texts.double()
    log_zero_shot = (SCALE * x @ texts.T).log_softmax(dim=1)
    affinity = x @ x.T
    affinity.fill_diagonal_(-torch.inf)
    best = affinity.topk(neighbours, dim=1)
    weights = torch.zeros_like(affinity).scatter_(1, best.indices, best.values.clamp(min=0))
    z = log_zero_shot.exp()
    sure = z.topk(min(8, len(x)), dim=0).indices
    means = F.normalize(torch.stack([x[rows].mean(dim=0) for rows in sure.T]), dim=1)
    variances = torch.full((x.shape[1],), 1 / x.shape[1], dtype=torch.float64)
    for _ in range(rounds):
        distances = (x.square() / variances).sum(dim=1, keepdim=True)
        distances = distances - 2 * (x / variances) @ means.T
        distances = distances + (means.square() / variances).sum(dim=1)
        density = -0.5 * distances
        for _ in range(5):
            z = (density + weights @ z + log_zero_shot).softmax(dim=1)
        counts = z.sum(dim=0).clamp(min=1e-9)
        means = F.normalize(z.T @ x / counts[:, None], dim=1)
        squares = (
            z.T @ x.square() - 2 * means * (z.T @ x) + counts[:, None] * means.square()
        )
        variances = (squares.sum(dim=0) / len(x)).clamp(min=1e-8)
    return z.argmax(dim=1)


def crowdlab(data: Data, folds: int = 5) -> torch.Tensor:
    """Return labels by CROWDLAB (arXiv 2210.06812) of one annotator and a classifier.

    The classifier is a logistic regression on the votes of other folds. Both are weighted by how
    much more often they agree with the votes than the most frequent class does.
    """
    assert data.options is not None
    first = data.options[:, 0]
    x = F.normalize(data.features - data.features.mean(dim=0), dim=1).double()
    predicted = torch.zeros(len(x), data.n_classes, dtype=torch.float64)
    for fold in range(folds):
        is_in = torch.arange(len(x)) % folds == fold
        rows = ~is_in & (first >= 0)
        weights = regression(x[rows], first[rows], data.n_classes, steps=100)
        predicted[is_in] = (x[is_in] @ weights.T).softmax(dim=1)
    has = first >= 0
    consensus = torch.where(has, first, predicted.argmax(dim=1))
    agreement = (predicted.argmax(dim=1) == consensus).double().mean().item()
    frequent = torch.bincount(consensus).max().item() / len(consensus)
    weight = max(0.0, 1 - (1 - agreement) / (1 - frequent))
    # One annotator agrees with itself, so the classifier judges the votes.
    quality = predicted[has, first[has]].mean().item()
    likelihood = torch.full_like(predicted, (1 - quality) / max(1, data.n_classes - 1))
    likelihood[has, first[has]] = quality
    annotator = max(0.0, 1 - (1 - quality) / (1 - frequent))
    pooled = weight * predicted + annotator * has[:, None] * likelihood
    return pooled.argmax(dim=1)


def regression(
    x: torch.Tensor, labels: torch.Tensor, n_classes: int, *, steps: int = 200
) -> torch.Tensor:
    """Return the weights [C, D] of a logistic regression on features [n, D] of length 1."""
    weights = torch.zeros(n_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(10 * x @ weights.T, labels, reduction="sum")
        loss = loss + 0.5 * weights.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return 10 * weights.detach()


# --- tables --------------------------------------------------------------------------------------

TABLES: dict[str, tuple[str, ...]] = {
    "Untrained, without captions": (
        *("zero_shot", "zero_shot_new", "untrained", "untrained_new", "transclip"),
    ),
    "Labels by the answers of the LMM": (
        *("votes", "labels", "new", "five_answers", "five_answers_new", "class_scores"),
        *("class_scores_new", "crowdlab", "expected_calibration_error", "trust_in_images"),
    ),
}


def measure(data: Data) -> Figures:
    """Return all figures of a set."""
    start = time.perf_counter()
    keys = [key for columns in TABLES.values() for key in columns]
    found: Figures = dict.fromkeys([*keys, "answers", "guarantees", "choice"])
    parts: tuple[Callable[[Data], Figures], ...] = (
        *(untrained, labels_of_votes, answers, guarantees, choice),
    )
    for part in parts:
        found |= part(data)
    found["images"] = len(data.labels)
    found["classes"] = data.n_classes
    found["seconds"] = round(time.perf_counter() - start, 1)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


def show(results: dict[str, Figures]) -> None:
    """Print the tables."""
    for title, columns in TABLES.items():
        print(f"\n{title}\n\n| set | images | classes | {' | '.join(columns)} |")
        print("|---" * (3 + len(columns)) + "|")
        for name, found in results.items():
            if any(found[column] is not None for column in columns):
                cells = [found[column] for column in ("images", "classes", *columns)]
                print(f"| {name} | {' | '.join(map(_cell, cells))} |")
    print(
        "\nAnswers of a person: labels of all and of unasked images (before), new images\n"
    )
    for name, found in results.items():
        for kind, one in (found["answers"] or {}).items():
            print(
                f"| {name} | {kind} | {one['all']} | {one['unasked']} ({one['unasked_before']}) "
                f"| {one['new']} |"
            )

    print(
        f"\nPromises of {CHECKED} answers: share of {DRAWINGS} drawings in which they are kept\n"
    )
    for name, found in results.items():
        for error, one in (found["guarantees"] or {}).items():
            print(f"| {name} | {error} | kept {one['kept']} | taken {one['taken']} |")
    print("\nChosen by votes, and the accuracies on new images\n")
    for name, found in results.items():
        if found["choice"]:
            print(f"| {name} | {found['choice']} |")


def show_encoders(folder: Path) -> None:
    """Print labels and classifiers of each CLIP with another beside it, while the third votes."""
    sets = [data for data in read(folder) if data.options is None and "_half" in data.name]
    print(
        "\nAnother CLIP as `image_encoders`, the zero-shot labels of a third one as votes\n"
    )
    for own, other, voter in itertools.permutations(sets, 3):
        assert voter.texts is not None
        labels = (voter.features @ voter.texts.T).argmax(dim=1)
        votes = label_votes(labels, own.n_classes)
        images = own.images()
        image_encoders = whiten(other.features.clone())
        alone = fuse(images, votes)
        both = fuse(images, votes, [image_encoders])
        joint = images.classifier(both.joint_heads[0], SCALE).scores(own.new_features)
        joint = joint + image_encoders.classifier(both.joint_heads[1], SCALE).scores(
            other.new_features
        )
        figures = [own.right(labels), own.right(alone.labels), own.right(both.labels)]
        figures += [own.right_new(images, alone.head) or 0.0]
        figures += [_percent(joint.argmax(dim=1) == own.new_labels)]
        print(
            f"| {own.name} | {other.name} | {voter.name} | {' | '.join(map(str, figures))} |"
        )


def _cell(value: float | None) -> str:
    return "" if value is None else str(value)


def main() -> None:
    """Measure each set of a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Figures] = {}
    for data in read(args.folder):
        results[data.name] = measure(data)
        if args.json:  # written after each set, for a run may be ended
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    if not results:
        parser.error(f"{args.folder} holds no set of the layout that --help describes.")
    show(results)
    show_encoders(args.folder)


if __name__ == "__main__":
    main()
