"""What each part of the labels without a human is worth, and what spoils it.

    python benchmarks/labels.py results/demo [--clip MODEL] [--seeds 3]

reads what a run of `image_prototypes` left of a dataset whose labels are known, spoils captions or
draws some of the training images, and makes labels and classifiers anew with the package's own
functions. True labels only score. Shares of right labels of training images, and after the stroke
of right predictions on the test split, in percent. Means and standard deviations over the seeds
where something is drawn.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc
import torch

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, load_classifier
from latteclip.core import devices, tables
from latteclip.labels.adaptation import adapt, unbiased_votes
from latteclip.labels.features import read_features
from latteclip.labels.fusion import fuse
from latteclip.labels.label_sources import (
    ClipFeatures,
    Votes,
    caption_votes,
)
from latteclip.labels.voters.lmm import read_class_scores

Scored = tuple[float | None, float | None]  # right labels, right predictions, percent


@dataclass(frozen=True)
class Data:
    """Training images with their votes, and test images."""

    features: torch.Tensor  # [N, D]
    labels: torch.Tensor  # [N]
    texts: torch.Tensor  # [N, D] features of captions, 0 where there is none
    options: torch.Tensor | None  # [N, K] of class scores
    scores: torch.Tensor | None  # [N, K]
    test_features: torch.Tensor
    test_labels: torch.Tensor
    classes: torch.Tensor  # [C, D]
    scale: float

    def images(self) -> ClipFeatures:
        """Return the features of the training images."""
        return adapt(ClipFeatures.of(self.features.clone(), self.classes, self.scale))

    def caption_votes(self) -> Votes:
        """Return the votes of the captions."""
        n = len(self.texts)
        rows = torch.where(self.texts.any(dim=1), torch.arange(n), n)
        texts = torch.cat([self.texts, self.texts.new_zeros(1, self.texts.shape[1])])
        return caption_votes(texts, rows, self.classes, self.scale)

    def taken(self, rows: torch.Tensor) -> "Data":
        """Return some of the training images."""
        return replace(
            self,
            features=self.features[rows],
            labels=self.labels[rows],
            texts=self.texts[rows],
            options=None if self.options is None else self.options[rows],
            scores=None if self.scores is None else self.scores[rows],
        )


def read(folder: Path, clip_model: str | None) -> Data:
    """Read what a run left."""
    index = tables.read(folder / "images.parquet", tables.IMAGES)
    is_test = pc.equal(index["split"], "test")
    train, test = (index.filter(rows) for rows in (pc.invert(is_test), is_test))
    classes, described = load_classifier(folder / "class_embeddings.safetensors")
    name = described["model"]
    pretrained = described["pretrained"]
    if clip_model:
        name = clip_model
        pretrained = None
    clip = clips.load(name, pretrained, devices.pick("cpu", 1))
    captions = tables.lookup(
        str(folder / "captions/images.parquet"),
        tables.CAPTIONS,
        *("id", "caption"),
        train["image_id"].to_pylist(),
    )
    texts = torch.zeros(len(train), classes.weights.shape[1])
    given = [row for row, caption in enumerate(captions) if caption and caption.strip()]
    with torch.no_grad():
        for start in range(0, len(given), 256):
            rows = given[start : start + 256]
            texts[rows] = encode.encode_texts(
                clip, clip.tokenizer([captions[i] for i in rows])
            )
    options = scores = None
    if (folder / "class_scores.parquet").is_file():
        file = str(folder / "class_scores.parquet")
        options, scores = read_class_scores(file, train["image_id"])
    features = str(folder / "pseudo_labels.parquet")
    return Data(
        read_features(features, train["image_id"])[:],
        torch.tensor(train["label"].to_pylist()),
        texts,
        options,
        scores,
        read_features(features, test["image_id"])[:],
        torch.tensor(test["label"].to_pylist()),
        classes.weights,
        described["logit_scale"],
    )


# --- what is done to the data --------------------------------------------------------------------


def as_it_is(data: Data, draw: torch.Generator) -> Data:
    """Change nothing."""
    return data


def swapped(share: float) -> Callable[[Data, torch.Generator], Data]:
    """Return a change that shuffles a share of the captions."""

    def change(data: Data, draw: torch.Generator) -> Data:
        moved = (torch.rand(len(data.texts), generator=draw) < share).nonzero()[:, 0]
        order = torch.arange(len(data.texts))
        order[moved] = moved[torch.randperm(len(moved), generator=draw)]
        dealt = data.taken(order)
        return replace(dealt, features=data.features, labels=data.labels)

    return change


def _drawn(data: Data, sizes: Callable[[int, int], int], draw: torch.Generator) -> Data:
    """Draw images of each class: `sizes` of its number and its place in a random order."""
    kept = []
    for place, label in enumerate(
        torch.randperm(len(data.classes), generator=draw).tolist()
    ):
        rows = (data.labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=draw)]
        kept.append(rows[: max(1, sizes(len(rows), place))])
    return data.taken(torch.cat(kept).sort().values)


def unbalanced(ratio: float) -> Callable[[Data, torch.Generator], Data]:
    """Return a change to class sizes that fall geometrically to 1 / ratio."""

    def change(data: Data, draw: torch.Generator) -> Data:
        last = len(data.classes) - 1
        return _drawn(data, lambda n, place: round(n * ratio ** (-place / last)), draw)

    return change


def few(size: int) -> Callable[[Data, torch.Generator], Data]:
    """Return a change that leaves so many images of each class."""
    return lambda data, draw: _drawn(data, lambda n, place: size, draw)


CHANGES: dict[str, tuple[Callable[[Data, torch.Generator], Data], bool]] = {
    "as it is": (as_it_is, False),
    "25 % of the votes swapped": (swapped(0.25), True),
    "50 %": (swapped(0.5), True),
    "75 %": (swapped(0.75), True),
    "all": (swapped(1.0), True),
    "imbalance 20": (unbalanced(20), True),
    "imbalance 50": (unbalanced(50), True),
    "5 images a class": (few(5), True),
    "2 images a class": (few(2), True),
}


# --- who labels ----------------------------------------------------------------------------------


def zero_shot(data: Data) -> Scored:
    """Label by cosines with the class texts."""
    return _scored(
        data, (data.features @ data.classes.T).argmax(1), Classifier.of(data.classes)
    )


def adapted(data: Data) -> Scored:
    """Label by zero-shot scores adapted to the images."""
    images = data.images()
    classifier = images.classifier(images.adapted, data.scale)
    return _scored(data, classifier.scores(data.features).argmax(dim=1), classifier)


def captions_alone(data: Data) -> Scored:
    """Label by the class that is nearest to each caption."""
    return _scored(data, (data.texts @ data.classes.T).argmax(dim=1), None)


def fused(data: Data) -> Scored:
    """Label by zero-shot scores, image prototypes and votes of captions."""
    return _fused(data, data.images(), data.caption_votes())


def _score_votes(data: Data, images: ClipFeatures) -> Votes:
    assert data.options is not None
    assert data.scores is not None
    return unbiased_votes(images, data.options, data.scores)


def lmm_alone(data: Data) -> Scored:
    """Label by class scores without a captioner's bias."""
    votes = _score_votes(data, data.images())
    return _scored(data, votes.probabilities(slice(None)).argmax(dim=1), None)


def lmm_fused(data: Data) -> Scored:
    """Label as `fused` does, with class scores as votes."""
    images = data.images()
    return _fused(data, images, _score_votes(data, images))


def _fused(data: Data, images: ClipFeatures, votes: Votes) -> Scored:
    fusion = fuse(images, votes)
    return _scored(data, fusion.labels, images.classifier(fusion.head, data.scale))


def _scored(
    data: Data, labels: torch.Tensor | None, classifier: Classifier | None
) -> Scored:
    def right(found: torch.Tensor, true: torch.Tensor) -> float:
        return 100 * (found == true).double().mean().item()

    predicted = None
    if classifier is not None:
        predicted = classifier.scores(data.test_features).argmax(dim=1)
    return (
        None if labels is None else right(labels, data.labels),
        None if predicted is None else right(predicted, data.test_labels),
    )


def cell(found: list[Scored]) -> str:
    """Return labels / test, each a mean with its deviation."""
    parts = []
    for column in zip(*found, strict=True):
        known = [value for value in column if value is not None]
        text = f"{statistics.mean(known):.1f}" if known else "-"
        if len(known) > 1:
            text += f" +- {statistics.stdev(known):.1f}"
        parts.append(text)
    return " / ".join(parts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of a dataset")
    parser.add_argument("--clip", help="where its CLIP lies now")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    data = read(args.results, args.clip)
    parts = {
        "zero-shot": zero_shot,
        "adapted": adapted,
        "captions alone": captions_alone,
        "fused": fused,
    }
    if data.options is not None:
        parts |= {"class scores alone": lmm_alone, "fused by class scores": lmm_fused}
    print(f"| {args.results} | {' | '.join(parts)} |")
    print("|---" * (1 + len(parts)) + "|")
    for name, (change, is_drawn) in CHANGES.items():
        seeds = range(args.seeds if is_drawn else 1)
        drawn = [change(data, torch.Generator().manual_seed(seed)) for seed in seeds]
        cells = [cell([part(own) for own in drawn]) for part in parts.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
