"""How well images of no class are told, with two classes left out of the list.

    python benchmarks/unknown.py results/demo [--left-out 2] [--draws 91]

takes what a run left of a dataset with labels: image features and class texts of the pretrained
CLIP. In each draw the texts of some classes are missing, while their images stay in both splits,
as in a folder that holds other things too. Every choice of classes is one draw, or as many at
random as are asked for. Printed are the AUROC over the test images, mean and deviation over the
draws, of the score that `score_unknown` writes and of others that were tried. Then, of the former,
the share of the test images of listed classes that is called unknown, and of those left out, by the
share of training images at which the threshold is set, or by the threshold after 100 answers: half
of them about the smallest margins between classes, as `latteclip teach` asks. Labels only score.

Where there are class scores (`scores.kind`), the same of the training images by the captioner's
word beside CLIP's. The scores of the classes that are left out count for nothing.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu

from latteclip.clip.classifier import load_classifier
from latteclip.clip.ood import UnknownDetector, threshold
from latteclip.core import tables
from latteclip.labels.features import read_features
from latteclip.labels.label_sources import ClipFeatures
from latteclip.labels.score_unknown import answered_threshold, unlikeliness
from latteclip.labels.voters.lmm import read_class_scores

SHARES = (0.02, 0.05, 0.1, 0.2)
ANSWERS = 100
DEFAULT_SHARE = 0.05
Floats = npt.NDArray[np.float64]


def auroc(scores: Floats, outside: npt.NDArray[np.bool_]) -> float:
    """Return how often an image of no class scores higher than one of a class."""
    found = mannwhitneyu(scores[outside], scores[~outside]).statistic
    return float(found / (outside.sum() * (~outside).sum()))


def others(
    features: torch.Tensor, texts: torch.Tensor, scale: float, training: torch.Tensor
) -> dict[str, Floats]:
    """Return other scores [N] by which an image may be of no class."""
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
        "distance to the nearest prototype of images": -(centred @ prototypes.T).amax(
            dim=1
        ),
    }
    return {name: score.double().numpy() for name, score in found.items()}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--left-out", type=int, default=2, metavar="C")
    parser.add_argument("--draws", type=int, default=100)
    args = parser.parse_args()
    index = tables.read(args.folder / "images.parquet", tables.IMAGES)
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
    on_test = Judged()
    on_training = Judged()
    by_captioner = captioner(args.folder, index, test)
    for left_out in draws:
        texts = classes.weights[[k for k in range(c) if k not in left_out]]
        outside = np.isin(labels, left_out)
        scores = others(features, texts, described["logit_scale"], training)
        for share in SHARES:
            detector, of_all = UnknownDetector.learn(features, training, texts, share, {})
            own = of_all.double().numpy()
            on_test.mark(f"share {share}", own[test] > detector.threshold, outside[test])
        images = ClipFeatures.of(
            features[training].clone(), texts, described["logit_scale"]
        )
        asked = np.flatnonzero(~test)[answered(images, ANSWERS)]
        detector, _ = UnknownDetector.learn(features, training, texts, DEFAULT_SHARE, {})
        line = answered_threshold(own[asked], outside[asked], detector.threshold)
        on_test.mark(f"{ANSWERS} answers", own[test] > line, outside[test])
        for name, score in {"score_unknown": own, **scores}.items():
            on_test.rank(name, score[test], outside[test])
        if by_captioner is None:
            continue
        options, said = by_captioner
        listed = np.where(np.isin(options, left_out), -np.float32(np.inf), said)
        score = unlikeliness(listed)
        for share in SHARES:
            line = threshold(torch.from_numpy(score), int(share * len(score)))
            on_training.mark(f"share {share}", score > line, outside[~test])
        on_training.rank(
            "the captioner's class scores", score.astype(float), outside[~test]
        )
        on_training.rank("score_unknown by CLIP", own[~test], outside[~test])
    print(f"{args.folder}: {len(draws)} draws of {args.left_out} of {c} classes left out")
    on_test.show()
    if by_captioner is not None:
        print("training images:")
        on_training.show()


def answered(images: ClipFeatures, n: int) -> npt.NDArray[np.int_]:
    """Return n rows of training images: the smallest margins, then images drawn at random."""
    best = images.zero_shot(torch.arange(len(images.centred))).exp().topk(2, dim=1).values
    doubtful = (best[:, 0] - best[:, 1]).argsort().numpy()
    drawn = np.random.default_rng(0).permutation(doubtful[n // 2 :])
    return np.concatenate([doubtful[: n // 2], drawn[: n - n // 2]])


def captioner(
    folder: Path, index: pa.Table, test: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None:
    """Return options and scores [N, K] of the training images, where there are some."""
    path = folder / "class_scores.parquet"
    if not path.is_file():
        return None
    options, scores = read_class_scores(
        str(path), index["image_id"].filter(pa.array(~test))
    )
    return options.numpy(), scores.numpy()


class Judged:
    """What came of the draws."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}
        self.marked: dict[str, list[tuple[float, float]]] = {}

    def rank(self, name: str, scores: Floats, outside: npt.NDArray[np.bool_]) -> None:
        """Note the AUROC of a draw."""
        self.found.setdefault(name, []).append(auroc(scores, outside))

    def mark(
        self, name: str, unknown: npt.NDArray[np.bool_], outside: npt.NDArray[np.bool_]
    ) -> None:
        """Note which images were called unknown in a draw."""
        shares = unknown[~outside].mean(), unknown[outside].mean()
        self.marked.setdefault(name, []).append(shares)

    def show(self) -> None:
        """Print means, deviations and the least."""
        for name, values in self.found.items():
            print(f"{name:44} AUROC {np.mean(values):.3f} +- {np.std(values):.3f}, "
                  f"least {min(values):.3f}")  # fmt: skip
        for name, pairs in self.marked.items():
            wrong, right = (100 * part for part in np.array(pairs).T)
            print(
                f"{name:11}: called unknown {wrong.mean():4.1f} +- {wrong.std():.1f} % of "
                f"the listed classes, {right.mean():4.1f} +- {right.std():.1f} % of those left out"
            )


if __name__ == "__main__":
    main()
