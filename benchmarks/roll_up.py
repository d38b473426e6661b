"""How many images get a class, or a class or group, at a promised share of errors.

    python benchmarks/roll_up.py FOLDER [--drawings 500]
    python benchmarks/roll_up.py results/objects/image_prototypes/seed0/model

FOLDER holds `caltech101.jsonl`, `caltech101_clip_vitb32.npy` and
`caltech101_text_vitb32_72classes.npz`: photographs of 72 classes with features of a real CLIP, as
in real_models.py. GROUPS were written before anything was measured. Of each drawing, 100 images of
the test split have an answer, and all images of the other split are predicted by zero-shot CLIP.

A model in the results of a dataset predicts its test images. Of each drawing, 100 of them have an
answer, and the others count as new. OBJECTS are groups of 20 classes of Caltech-101.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from latteclip.core import tables
from latteclip.core.class_groups import ClassGroups, read_parents
from latteclip.deploy.model_origin import result_file
from latteclip.deploy.predict import Predictor
from latteclip.labels.guarantees import pac_threshold

SCALE = 100.0  # of CLIP's cosines
ANSWERS = 100
PROMISES = (0.05, 0.1)
GROUPS: dict[str, Any] = {
    "animal": {
        "cat": ["leopard", "cougar_body", "wild_cat"],
        "mammal": [
            "beaver",
            "dalmatian",
            "dolphin",
            "elephant",
            "kangaroo",
            "llama",
            "panda",
            "rhino",
        ],
        "bird": ["emu", "flamingo", "pigeon", "rooster"],
        "insect or spider": ["ant", "butterfly", "dragonfly", "tick"],
        "crustacean": ["crab", "crayfish", "lobster"],
        "sea animal": ["nautilus", "octopus", "sea_horse", "starfish"],
        "reptile": ["crocodile", "stegosaurus"],
    },
    "vehicle": {
        "water vehicle": ["ferry", "ketch"],
        "air vehicle": ["airplane", "helicopter"],
        "road vehicle": ["car_side", "motorbike"],
    },
    "plant": ["bonsai", "lotus", "strawberry", "sunflower"],
    "music": ["accordion", "electric_guitar", "euphonium", "gramophone", "saxophone"],
    "furniture": ["chair", "windsor_chair", "lamp", "chandelier", "ceiling_fan"],
    "weapon": ["cannon", "revolver"],
    "device": ["camera", "cellphone", "headphone", "laptop", "watch", "binocular"],
    "tool": ["scissors", "stapler", "wrench"],
    "vessel": ["barrel", "cup", "ewer"],
}
OBJECTS: dict[str, Any] = {
    "animal": {
        "mammal": {
            "cat": ["cougar face", "leopard"],
            "other mammal": ["beaver", "dalmatian", "dolphin"],
        },
        "arthropod": ["crayfish", "scorpion", "trilobite"],
    },
    "vehicle": {"ship": ["ferry", "ketch"], "aircraft": ["helicopter"]},
    "music": ["euphonium", "gramophone"],
    "household": ["barrel", "stapler", "windsor chair"],
}
Floats = np.ndarray
Rows = np.ndarray
# A seed to the rows of images that have an answer, and of images that are new.
Draw = Callable[[int], tuple[Rows, Rows]]


def read(folder: Path) -> tuple[list[str], dict[str, tuple[Floats, list[int]]]]:
    """Return class names, and by split the probabilities [n, C] and classes of photographs."""
    lines = (folder / "caltech101.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    features = np.load(folder / "caltech101_clip_vitb32.npy").astype(np.float64)
    texts = np.load(folder / "caltech101_text_vitb32_72classes.npz", allow_pickle=False)
    place = {int(label): number for number, label in enumerate(texts["labels"])}
    weights = texts["W"].astype(np.float64)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    found = {}
    for split in ("val", "test"):
        chosen = [
            number
            for number, row in enumerate(rows)
            if row["split"] == split and row["label"] in place
        ]
        logits = SCALE * features[chosen] @ weights.T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        found[split] = shares, [place[rows[number]["label"]] for number in chosen]
    return texts["names"].tolist(), found


def read_model(model: Path) -> tuple[list[str], Floats, list[int]]:
    """Return class names, and the probabilities [n, C] and classes of the test images."""
    predictor = Predictor(model, device="cpu", threads=2)
    index_path = result_file("images.parquet", predictor.model.folder, "this benchmark")
    index = tables.read(index_path, tables.IMAGES)
    test = index.filter(pc.equal(index["split"], "test"))
    names = predictor.model.classnames
    found = predictor(test["path"].to_pylist(), topk=len(names))
    shares = np.zeros((len(found), len(names)))
    for row, one in zip(shares, found, strict=True):
        row[one.topk_labels] = one.topk_probabilities
    return names, shares, test["label"].to_pylist()


def measure(
    groups: ClassGroups, shares: Floats, labels: list[int], draw: Draw, drawings: int
) -> None:
    """Print for each promise which share of new images is answered, and how often it holds."""
    confidence, is_wrong = groups.mistakes(shares, labels)
    paths = [[node.probability for node in groups.path(row)] for row in shares]
    coarsest = np.array([path[0] for path in paths])
    finest = np.array([path[-1] for path in paths])
    for most in PROMISES:
        rows = []
        for seed in range(drawings):
            drawn, new = draw(seed)
            threshold = pac_threshold(confidence[drawn], is_wrong[drawn], most)
            some = np.mean(coarsest[new] >= threshold)
            leaves = np.mean(finest[new] >= threshold)
            wrong = np.mean(is_wrong[new] & (confidence[new] >= threshold))
            rows.append((100 * some, 100 * leaves, 100 * wrong, 100 * (wrong <= most)))
        some, leaves, wrong, kept = np.mean(rows, axis=0)
        print(
            f"  at most {100 * most:2.0f} % wrong: {some:5.1f} % answered, {leaves:5.1f} % by a "
            f"class, {wrong:4.2f} % wrong, kept in {kept:5.1f} % of the drawings"
        )


def of_two_splits(answered: int, new: int) -> Draw:
    """Return drawings of the first rows, and all rows after them as new images."""
    others = np.arange(answered, answered + new)
    return lambda seed: (
        np.random.default_rng(seed).permutation(answered)[:ANSWERS],
        others,
    )


def of_one_split(n: int) -> Draw:
    """Return drawings of n rows, whose other rows are new images."""

    def draw(seed: int) -> tuple[Rows, Rows]:
        order = np.random.default_rng(seed).permutation(n)
        return order[:ANSWERS], order[ANSWERS:]

    return draw


def main() -> None:
    """Print the table with and without groups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drawings", type=int, default=500)
    args = parser.parse_args()
    if (args.folder / "caltech101.jsonl").is_file():
        names, splits = read(args.folder)
        answered = splits["test"]
        new = splits["val"]
        shares = np.concatenate([answered[0], new[0]])
        labels = [*answered[1], *new[1]]
        draw = of_two_splits(len(answered[1]), len(new[1]))
        given = GROUPS
    else:
        names, shares, labels = read_model(args.folder)
        draw = of_one_split(len(labels))
        given = OBJECTS
    _, rows = draw(0)
    right = np.mean(shares.argmax(axis=1) == labels)
    print(f"{len(names)} classes, {len(rows)} new images, {100 * right:.1f} % right of all")
    for title, parents in (("classes alone", {}), ("rolled up", read_parents(given))):
        print(title)
        measure(ClassGroups(parents, names), shares, labels, draw, args.drawings)


if __name__ == "__main__":
    main()
