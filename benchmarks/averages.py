"""Averages of weights, over seeds and with the pretrained model, and heads of the tuned features.

    snakemake -j2 --config dataset=demo method=recommended
    python benchmarks/averages.py results/demo latteclip/demo/models/clip

prints the accuracy on the test split of each training of `recommended_single`, of the average of
their weights, of averages with the pretrained weights (WiSE-FT, Wortsman et al. 2022), and of
`head: refit` on each. Labels of training images are not read, those of test images only score.
"""

import argparse
from pathlib import Path

import pyarrow.compute as pc
import torch

from latteclip.clip import model as clips
from latteclip.clip.classifier import Classifier, FeatureMemmap
from latteclip.clip.encode import class_embeddings, encode_files
from latteclip.clip.finetuned import load
from latteclip.core import tables
from latteclip.core.holdout import Fold, left_out
from latteclip.core.metadata import IndexMetadata
from latteclip.labels.fusion import fuse
from latteclip.labels.label_sources import ClipFeatures, label_votes

SHARES = (1.0, 0.75, 0.5, 0.25)  # of the tuned weights
State = dict[str, torch.Tensor]
CPU = torch.device("cpu")


def mean(states: list[State]) -> State:
    """Return the mean of the weights of several models."""
    return {
        name: sum(state[name] for state in states) / len(states)  # type: ignore[misc]
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


def mixed(share: float, tuned: State, pretrained: State) -> State:
    """Return weights that lie between the pretrained ones (0) and the tuned ones (1)."""
    return {
        name: share * weights + (1 - share) * pretrained[name]
        if weights.is_floating_point()
        else weights
        for name, weights in tuned.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results/<dataset>")
    parser.add_argument("clip", type=Path, help="folder of the pretrained CLIP")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    index = args.results / "images.parquet"
    images = tables.read(index, tables.IMAGES)
    names = tables.read_metadata(index, IndexMetadata).classnames
    is_test = pc.equal(images["split"], "test")
    test = images.filter(is_test)
    train = images.filter(pc.invert(is_test))
    fused = tables.lookup_column(
        str(args.results / "fused_labels.parquet"),
        tables.FUSED_LABELS,
        "image_id",
        "fused_label",
        train["image_id"],
    )
    labels = torch.tensor(fused.to_pylist())
    votes = tables.read(args.results / "votes.parquet", tables.VOTES)
    vote_of = dict(
        zip(votes["image_id"].to_pylist(), votes["vote"].to_pylist(), strict=True)
    )
    truth = torch.tensor(test["label"].to_pylist())
    folders = [
        args.results / f"recommended_single/seed{n}/model" for n in range(args.seeds)
    ]
    trained = [load(folder, CPU, classnames=names) for folder in folders]
    states = [each.clip.model.state_dict() for each in trained]
    template = trained[0].class_templates.template
    clip = clips.load(f"local-dir:{args.clip}", None, CPU)
    pretrained = {name: each.clone() for name, each in clip.model.state_dict().items()}

    def encoded(state: State, paths: list[str]) -> FeatureMemmap:
        clip.model.load_state_dict(state)
        return encode_files(clip, paths, 64, args.threads)

    def accuracies(state: State) -> tuple[float, float]:
        """Return the accuracies by the class texts, and by a head of the tuned features."""
        features = encoded(state, test["path"].to_pylist())[slice(None)]
        texts = class_embeddings(clip, template, names)
        scale = clip.model.logit_scale.exp().item()  # type: ignore[operator]
        seen = ClipFeatures.of(encoded(state, train["path"].to_pylist()), texts, scale)
        remade = seen.classifier(fuse(seen, label_votes(labels, len(names))).head, scale)
        heads = (Classifier.of(texts), remade)
        return tuple(  # type: ignore[return-value]
            100 * (head.scores(features).argmax(1) == truth).double().mean().item()
            for head in heads
        )

    def agreement(share: float) -> float:
        """Return how far trainings agree with the votes of images that each left out."""
        found: list[float] = []
        for number, state in enumerate(states):
            fold = Fold(0.1, number, len(states))
            apart = train.filter(left_out(train["image_id"].to_pylist(), fold))
            features = encoded(mixed(share, state, pretrained), apart["path"].to_pylist())
            classes = class_embeddings(clip, template, names)
            predicted = (
                Classifier.of(classes).scores(features[slice(None)]).argmax(1).tolist()
            )
            for image_id, label in zip(
                apart["image_id"].to_pylist(), predicted, strict=True
            ):
                if image_id in vote_of:
                    found.append(float(vote_of[image_id][label]))
        return 100 * sum(found) / max(1, len(found))

    for number, state in enumerate(states):
        own, remade = accuracies(state)
        print(f"seed {number}: {own:.1f}, with a head of the tuned features {remade:.1f}")
    for share in SHARES:
        own, remade = accuracies(mixed(share, mean(states), pretrained))
        print(
            f"average of the seeds, {share:.0%} tuned: {own:.1f}, with a head of the tuned "
            f"features {remade:.1f}; votes of images left out {agreement(share):.1f}"
        )


if __name__ == "__main__":
    main()
