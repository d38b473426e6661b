"""A dataset with fewer training images of some classes, as a configuration that the workflow runs.

    python benchmarks/imbalance.py results/demo imbalanced --ratio 20 --seed 0
    snakemake -j2 --configfile imbalanced/config.yaml --config dataset=demo_20_0

Class sizes fall geometrically from those of the run to 1 / ratio of them, in a random order of the
classes. The test split stays. True labels draw the images, and nothing else reads them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import yaml

from latteclip.config import layers
from latteclip.config.layers import merge
from latteclip.core import tables
from latteclip.core.metadata import IndexMetadata


def main() -> None:
    """Write `config.yaml`, and the folder of the dataset: a split file and a link to its images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of a dataset's results")
    parser.add_argument("output", type=Path, help="folder for what is made")
    parser.add_argument("--ratio", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configfile", type=Path, help="that describes the dataset")
    args = parser.parse_args()
    index = args.results / "images.parquet"
    rows = tables.read(index, tables.IMAGES).to_pylist()
    names = tables.read_metadata(index, IndexMetadata).classnames
    draw = np.random.default_rng(args.seed)
    train = [row for row in rows if row["split"] != "test"]
    kept = []
    for place, label in enumerate(draw.permutation(len(names))):
        own = [row for row in train if row["label"] == label]
        size = max(1, round(len(own) * args.ratio ** (-place / (len(names) - 1))))
        kept += [own[i] for i in sorted(draw.permutation(len(own))[:size])]
    folder = args.output / f"{args.results.name}_{args.ratio:g}_{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": kept,
        "val": [],
        "test": [row for row in rows if row["split"] == "test"],
    }
    lines = {
        name: [[row["image_id"], row["label"], row["classname"]] for row in some]
        for name, some in splits.items()
    }
    images = Path(str(Path(rows[0]["path"]).resolve()).removesuffix(rows[0]["image_id"]))
    if not (folder / "images").exists():
        (folder / "images").symlink_to(images, target_is_directory=True)
    (folder / "split.json").write_text(json.dumps(lines), encoding="utf-8")
    given = yaml.safe_load(args.configfile.read_text()) if args.configfile else {}
    datasets = merge(layers.datasets(), given.get("datasets", {}))
    own_words = datasets[args.results.name]
    dataset = {
        **own_words,
        "source": {"folder": str(folder.resolve())},
        "split": {"kind": "coop", "file": "split.json", "images": "images"},
    }
    config = merge(given, {"datasets": {folder.name: dataset}})
    (args.output / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    print(f"{len(kept)} of {len(train)} training images: {folder.name}")


if __name__ == "__main__":
    main()
