"""How many images get a class, or a class or group, at a promised share of errors.

    python benchmarks/roll_up.py FOLDER [--drawings 500]

FOLDER holds `caltech101.jsonl`, `caltech101_clip_vitb32.npy` and
`caltech101_text_vitb32_72classes.npz`: photographs of 72 classes with features of a real CLIP, as
in real_models.py. GROUPS were written before anything was measured. Of each drawing, 100 images of
the test split have an answer, and all images of the other split are predicted by zero-shot CLIP.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from latteclip.core.class_groups import ClassGroups, read_parents
from latteclip.labels.guarantees import pac_threshold

SCALE = 100.0  # of CLIP's cosines
ANSWERS = 100
PROMISES = (0.05, 0.1)
GROUPS = {
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
Floats = np.ndarray


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


def measure(
    groups: ClassGroups,
    answered: tuple[Floats, list[int]],
    new: tuple[Floats, list[int]],
    drawings: int,
) -> None:
    """Print for each promise which share of new images is answered, and how often it holds."""
    confidence, is_wrong = groups.mistakes(*answered)
    new_confidence, new_wrong = groups.mistakes(*new)
    nodes = [[node.probability for node in groups.path(row)] for row in new[0]]
    for most in PROMISES:
        rows = []
        for seed in range(drawings):
            drawn = np.random.default_rng(seed).permutation(len(is_wrong))[:ANSWERS]
            threshold = pac_threshold(confidence[drawn], is_wrong[drawn], most)
            some = np.mean([path[0] >= threshold for path in nodes])
            leaves = np.mean([path[-1] >= threshold for path in nodes])
            wrong = np.mean(new_wrong & (new_confidence >= threshold))
            rows.append((100 * some, 100 * leaves, 100 * wrong, 100 * (wrong <= most)))
        some, leaves, wrong, kept = np.mean(rows, axis=0)
        print(
            f"  at most {100 * most:2.0f} % wrong: {some:5.1f} % answered, {leaves:5.1f} % by a "
            f"class, {wrong:4.2f} % wrong, kept in {kept:5.1f} % of the drawings"
        )


def main() -> None:
    """Print the table with and without groups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--drawings", type=int, default=500)
    args = parser.parse_args()
    names, splits = read(args.folder)
    right = np.mean(splits["val"][0].argmax(axis=1) == splits["val"][1])
    print(
        f"{len(names)} classes, {len(splits['val'][1])} new images, {100 * right:.1f} % right"
    )
    for title, parents in (("classes alone", {}), ("rolled up", read_parents(GROUPS))):
        print(title)
        tree = ClassGroups(parents, names)
        measure(tree, splits["test"], splits["val"], args.drawings)


if __name__ == "__main__":
    main()
