"""How well images of no class are told, with two classes left out of the list.

    python benchmarks/unknown.py results/demo [--left-out 2] [--draws 91]

takes what a run left of a dataset with labels: image features and class texts of the pretrained
CLIP. In each draw the texts of some classes are missing, while their images stay in both splits,
as in a folder that holds other things too; every choice of classes is one draw, or as many at
random as are asked for. Printed are the AUROC over the test images, mean and deviation over the
draws, of the score that `score_unknown` writes and of others that were tried; then, of the former,
the share of the test images of listed classes that is called unknown, and of those left out, by the
share of training images at which the threshold is set. Labels are read to judge alone.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu

from latteclip.clip.classifier import load_classifier
from latteclip.clip.unknown import UnknownDetector
from latteclip.core import tables
from latteclip.labels.features import read_features

SHARES = (0.02, 0.05, 0.1, 0.2)
Floats = npt.NDArray[np.float64]


def auroc(scores: Floats, outside: npt.NDArray[np.bool_]) -> float:
    """How often an image of no class scores higher than one of a class."""
    found = mannwhitneyu(scores[outside], scores[~outside]).statistic
    return float(found / (outside.sum() * (~outside).sum()))


def others(
    features: torch.Tensor, texts: torch.Tensor, scale: float, training: torch.Tensor
) -> dict[str, Floats]:
    """Other scores [N] that tell of no class."""
    logits = scale * features @ texts.T
    off = logits - logits[training].mean(dim=0)
    centred = F.normalize(features - features[training].mean(dim=0), dim=1)
    shares = off[training].softmax(dim=1)
    prototypes = F.normalize(shares.T @ centred[training], dim=1)
    found = {
        "softmax of the likeliest class (MCM)": -logits.softmax(dim=1).amax(dim=1),
        "cosine with the nearest class text": -logits.amax(dim=1),
        "energy": -logits.logsumexp(dim=1),
        "softmax, class means off": -off.softmax(dim=1).amax(dim=1),
        "cosine, class means off": -off.amax(dim=1),
        "distance to the nearest prototype of images": -(centred @ prototypes.T).amax(dim=1),
    }
    return {name: score.double().numpy() for name, score in found.items()}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--left-out", type=int, default=2, metavar="C")
    parser.add_argument("--draws", type=int, default=100)
    args = parser.parse_args()
    index, _ = tables.read(args.folder / "images.parquet", tables.IMAGES)
    labels = index["label"].to_numpy()
    test = np.array(index["split"].to_pylist()) == "test"
    training = torch.from_numpy(~test)
    classes, described = load_classifier(args.folder / "class_embeddings.safetensors")
    path = str(args.folder / "pseudo_labels.parquet")
    features = read_features(path, index["image_id"])[:]
    c = len(classes.weights)
    draws = list(combinations(range(c), args.left_out))
    if len(draws) > args.draws:
        chosen = np.random.default_rng(0).choice(len(draws), args.draws, replace=False)
        draws = [draws[number] for number in chosen]
    found: dict[str, list[float]] = {}
    marked: dict[float, list[tuple[float, float]]] = {share: [] for share in SHARES}
    for left_out in draws:
        texts = classes.weights[[k for k in range(c) if k not in left_out]]
        outside = np.isin(labels[test], left_out)
        scores = others(features, texts, described["logit_scale"], training)
        for share in SHARES:
            detector, of_all = UnknownDetector.learn(features, training, texts, share, {})
            own = of_all.double().numpy()
            is_unknown = own[test] > detector.threshold
            marked[share].append((is_unknown[~outside].mean(), is_unknown[outside].mean()))
        for name, score in {"score_unknown": own, **scores}.items():
            found.setdefault(name, []).append(auroc(score[test], outside))
    print(f"{args.folder}: {len(draws)} draws of {args.left_out} of {c} classes left out")
    for name, values in found.items():
        print(f"{name:44} AUROC {np.mean(values):.3f} +- {np.std(values):.3f}, "
              f"least {min(values):.3f}")  # fmt: skip
    for share, pairs in marked.items():
        wrong, right = (100 * part for part in np.array(pairs).T)
        print(
            f"share {share:4}: called unknown {wrong.mean():4.1f} +- {wrong.std():.1f} % of the "
            f"listed classes, {right.mean():4.1f} +- {right.std():.1f} % of those left out"
        )


if __name__ == "__main__":
    main()
