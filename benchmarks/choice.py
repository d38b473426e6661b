"""What the choice of a model costs: points of test accuracy below the best candidate.

    python benchmarks/choice.py train results/dtd_dev drawn --images 100 --draws 2
    python benchmarks/choice.py score drawn/* results/dtd_dev

`train` draws training images of a finished run, labels them anew by their captions, and trains good
and bad candidates on them with three seeds, each with its fold. `score` chooses among the untrained
candidates and each trained one, and among all, and tells the regret. True labels only score.
"""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from trainings import flyp_settings, training_files

from latteclip.clip.classifier import load_classifier
from latteclip.config.methods import OBJECTIVES
from latteclip.config.sections.clip import ClipSection
from latteclip.config.sections.inference import InferenceSection
from latteclip.config.stage_params import candidacy
from latteclip.core import tables
from latteclip.core.holdout import Fold
from latteclip.core.metadata import ClassesMetadata, IndexMetadata
from latteclip.evaluate import evaluate as evaluation
from latteclip.evaluate import evaluate_classifier
from latteclip.evaluate.results import read_metrics
from latteclip.evaluate.select_model import (
    Candidate,
    choose,
    read_votes,
)
from latteclip.labels import adapt_zero_shot, fuse_labels
from latteclip.labels.voters.base import FusionSettings, VoterTable
from latteclip.train import finetune
from latteclip.train.settings import auto_epochs

SEEDS = 3
SHARE = 0.1
TOPK = 5
ENCODING = InferenceSection(batch_size=64, topk=TOPK)
PSEUDO_LABELS = "pseudo_labels.parquet"


@dataclass(frozen=True)
class Recipe:
    """How a candidate is trained: the factor of the good rate, and the share of the good epochs."""

    rate: float
    epochs: float


RECIPES = {
    "good": Recipe(1, 1),
    "undertrained": Recipe(1, 0.1),
    "slow": Recipe(0.01, 0.1),
    "overtrained": Recipe(10, 0.5),
    "collapsed": Recipe(1000, 0.1),
}


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train")
    train.add_argument("results", type=Path, help="folder of a dataset's results")
    train.add_argument("output", type=Path, help="folder for what is made")
    train.add_argument(
        "--images", type=int, required=True, help="training images that are drawn"
    )
    train.add_argument("--draws", type=int, default=1)
    train.add_argument("--template", default="a photo of a {}.")
    train.add_argument("--rate", type=float, default=1e-4, help="of the good candidate")
    train.add_argument("--recipes", nargs="+", default=[*RECIPES], choices=[*RECIPES])
    train.set_defaults(run=_train)
    score = commands.add_parser("score")
    score.add_argument(
        "results", type=Path, nargs="+", help="folders with candidates and votes"
    )
    score.set_defaults(run=_score)
    args = parser.parse_args()
    args.run(args)


def _train(args: argparse.Namespace) -> None:
    for draw in range(args.draws):
        folder = args.output / f"{args.results.name}_{args.images}_{draw}"
        folder.mkdir(parents=True, exist_ok=True)
        _draw(args.results, folder, args.images, draw)
        _label(args.results, folder)
        for recipe in args.recipes:
            for seed in range(SEEDS):
                _tune(args, folder, recipe, seed)


def _draw(results: Path, folder: Path, n: int, seed: int) -> None:
    """Write the index and the pseudo-labels of all test images and of n training images."""
    kinds = (
        ("images.parquet", tables.IMAGES, IndexMetadata),
        (PSEUDO_LABELS, tables.PSEUDO_LABELS, ClassesMetadata),
    )
    for name, schema, record in kinds:
        table = tables.read(results / name, schema)
        metadata = tables.read_metadata(results / name, record)
        is_test = np.array(table["split"].to_pylist()) == "test"
        some = np.random.default_rng(seed).permutation(np.flatnonzero(~is_test))[:n]
        table = table.take(
            pa.array(np.sort(np.concatenate([np.flatnonzero(is_test), some])))
        )
        columns = {column: table[column] for column in table.column_names}
        tables.write(str(folder / name), columns, schema, metadata)


def _label(results: Path, folder: Path) -> None:
    """Label the images, and evaluate what trains nothing."""
    images, pseudo_labels = (
        str(folder / name) for name in ("images.parquet", PSEUDO_LABELS)
    )
    embeddings = str(results / "class_embeddings.safetensors")
    _, described = load_classifier(embeddings)
    settings = FusionSettings(
        clip=ClipSection(model=described["model"], pretrained=described["pretrained"]),
        inference=ENCODING,
    )
    prototypes = str(folder / "image_prototypes.safetensors")
    votes = str(folder / "votes.parquet")
    fuse_labels.fuse_labels(
        images,
        pseudo_labels,
        embeddings,
        settings,
        str(folder / "fused_labels.parquet"),
        str(folder / "fused_labels.json"),
        prototypes,
        votes,
        str(folder / "voter_labels.parquet"),
        voters_files=[
            VoterTable(
                "caption",
                "captions",
                "caption",
                str(results / "captions" / "images.parquet"),
                "caption",
            )
        ],
        device="cpu",
        threads=1,
    )
    heads = [
        str(folder / name) for name in ("calibrated.safetensors", "unused.safetensors")
    ]
    adapt_zero_shot.adapt_zero_shot(images, pseudo_labels, embeddings, *heads)
    for method, head, own_votes in (
        ("zero_shot", embeddings, None),
        ("zero_shot_adapted", heads[0], None),
        ("image_prototypes", prototypes, votes),
    ):
        evaluate_classifier.evaluate_classifier(
            images,
            pseudo_labels,
            head,
            own_votes,
            evaluate_classifier.ClassifierSettings(inference=ENCODING),
            *_run(folder, method, 0),
        )


def _run(folder: Path, method: str, seed: int) -> tuple[str, str, int, str, str, str]:
    """Return dataset, method and seed of a run, and its files in a new folder."""
    place = folder / method / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    names = ("predictions.parquet", "metrics.json", "train_predictions.parquet")
    predictions, figures, training = (str(place / name) for name in names)
    return folder.name, method, seed, predictions, figures, training


def _tune(args: argparse.Namespace, folder: Path, name: str, seed: int) -> None:
    """Train and evaluate one seed of a candidate, unless that is done."""
    dataset, method, seed, predictions, figures, training = _run(folder, name, seed)
    if Path(training).exists():
        return
    recipe = RECIPES[name]
    fold = Fold(SHARE, seed, SEEDS)
    epochs = max(1, round(auto_epochs(args.images) * recipe.epochs))
    rate = args.rate * recipe.rate
    settings = flyp_settings(args.results, args.template, fold, epochs=epochs, lr=rate)
    place = folder / name / f"seed{seed}"
    files = training_files(folder)
    model = str(place / "model")
    history = str(place / "history.parquet")
    finetune.finetune(
        *(files, settings, model, history, str(place / "checkpoint")),
        seed=seed,
        device="cpu",
        threads=1,
    )
    evaluation.evaluate(
        *(files.images, files.pseudo_labels, model, history),
        evaluation.EvaluateSettings(clip=ClipSection(), inference=ENCODING, fold=fold),
        dataset=dataset,
        method=method,
        seed=seed,
        predictions_output=predictions,
        metrics_output=figures,
        train_predictions_output=training,
        device="cpu",
        threads=1,
    )
    shutil.rmtree(model)  # a hundred of them would fill the disk


def _score(args: argparse.Namespace) -> None:
    print("| run | held-out images | candidates | chosen | accuracy | best | regret |")
    print("|---|---|---|---|---|---|---|")
    regrets = [regret for folder in args.results for regret in _regrets(folder)]
    print(f"\nmean regret {np.mean(regrets):.2f}, largest {np.max(regrets):.2f} points")


def _regrets(folder: Path) -> Iterator[float]:
    """Print and yield what the choice costs with each trained method, and with all of them."""
    found = [
        (path.parent.parent.name, int(path.parent.name.removeprefix("seed")), path)
        for path in sorted(folder.glob("*/seed*/metrics.json"))
    ]
    untrained = [name for name, record in OBJECTIVES.items() if record.classifier]
    trained = sorted({method for method, _, _ in found if method not in untrained})
    for methods in [
        *([method] for method in trained),
        *([trained] if len(trained) > 1 else []),
    ]:
        some = [run for run in found if run[0] in (*untrained, *methods)]
        yield _regret(folder, some, ", ".join(methods))


def _regret(folder: Path, runs: list[tuple[str, int, Path]], named: str) -> float:
    """Return the regret of the choice among runs: of each method the mean over its seeds counts."""
    figures = [read_metrics(str(path)) for _, _, path in runs]
    candidates = [
        Candidate(
            method,
            seed,
            **candidacy(method),
            flags=tuple(values["flags"]),
            metrics=str(path),
            train_predictions=str(path.with_name("train_predictions.parquet")),
            model=str(path.parent),
        )
        for (method, seed, path), values in zip(runs, figures, strict=True)
    ]
    votes = read_votes(candidates, str(folder / "votes.parquet"))
    choice = choose(candidates, votes, None)
    accuracies: dict[str, list[float]] = {}
    for one, values in zip(candidates, figures, strict=True):
        accuracies.setdefault(one.method, []).append(100 * values["acc1"])
    means = {method: float(np.mean(values)) for method, values in accuracies.items()}
    chosen = candidates[choice.index].method
    best = max(means, key=lambda method: means[method])
    regret = means[best] - means[chosen]
    pooled = None if isinstance(votes, str) else votes.pooled(candidates)
    images = pooled.images(len(runs) - 1) if pooled else 0
    print(
        f"| {folder.name} | {images} | {named} | {chosen} | {means[chosen]:.1f} | "
        f"{best} {means[best]:.1f} | {regret:.1f} |"
    )
    return regret


if __name__ == "__main__":
    main()
