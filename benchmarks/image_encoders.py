"""What image encoders beside CLIP are worth to labels and classifiers, and what useless ones cost.

    snakemake -j2 --config dataset=mine image_dir=photos image_encoders=local-dir:encoder
    python benchmarks/image_encoders.py results/mine [--clip MODEL]

reads what a run with `image_encoders` left of a dataset whose labels are known, and fuses labels
again: with CLIP's features alone, with those of the run's image encoders, and with models that see
nothing more (noise, a random projection of CLIP's features, grey thumbnails, CLIP's own features
again). True labels only score. It prints right labels of training images, right predictions on the
test split by CLIP's own classifier and by that of all models, in percent, and the weights of the
image encoders.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from labels import Data, read
from PIL import Image

from latteclip.core import tables
from latteclip.labels.features import read_features
from latteclip.labels.fusion import fuse
from latteclip.labels.label_sources import whiten

THUMBNAIL = 16  # pixels of a side
PROJECTED = 64  # width
NOISE = 1280  # width
Pair = tuple[torch.Tensor, torch.Tensor]  # features of training and of test images


def projection(data: Data) -> Pair:
    """Return a random projection of CLIP's features."""
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(data.features.shape[1], PROJECTED, generator=draw)
    return F.normalize(data.features @ matrix, dim=1), F.normalize(
        data.test_features @ matrix, dim=1
    )


def noise(data: Data) -> Pair:
    """Return random numbers."""
    draw = torch.Generator().manual_seed(0)
    train, test = (
        torch.randn(n, NOISE, generator=draw)
        for n in (len(data.labels), len(data.test_labels))
    )
    return F.normalize(train, dim=1), F.normalize(test, dim=1)


def thumbnails(paths: list[str]) -> torch.Tensor:
    """Return grey thumbnails of images, as rows."""
    rows = []
    for path in paths:
        with Image.open(path) as image:
            grey = image.convert("L").resize((THUMBNAIL, THUMBNAIL))
        rows.append(torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).float())
    return F.normalize(torch.stack(rows), dim=1)


def line(name: str, data: Data, pairs: list[Pair], chance: Callable[[float], str]) -> str:
    """Return a row of the table."""
    images = data.images()
    others = [whiten(train.clone()) for train, _ in pairs]
    fusion = fuse(images, data.caption_votes(), others)

    def right(found: torch.Tensor, true: torch.Tensor) -> str:
        return f"{100 * (found == true).double().mean().item():.1f}"

    own = images.classifier(fusion.head, data.scale).scores(data.test_features)
    joint = images.classifier(fusion.joint_heads[0], data.scale).scores(data.test_features)
    for model, head, (_, test) in zip(others, fusion.joint_heads[1:], pairs, strict=True):
        joint = joint + model.classifier(head, data.scale).scores(test)
    cells = [
        name,
        right(fusion.labels, data.labels),
        right(own.argmax(1), data.test_labels),
        right(joint.argmax(1), data.test_labels),
        ", ".join(chance(weight) for weight in fusion.parameters.images),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of a dataset")
    parser.add_argument("--clip", help="where its CLIP lies now")
    args = parser.parse_args()
    data = read(args.results, args.clip)
    index = tables.read(args.results / "images.parquet", tables.IMAGES)
    is_test = pc.equal(index["split"], "test")
    splits: list[pa.Table] = [index.filter(rows) for rows in (pc.invert(is_test), is_test)]
    image_encoders = []
    for path in sorted((args.results / "image_encoders").glob("*.parquet")):
        train, test = (
            read_features(str(path), split["image_id"], tables.IMAGE_FEATURES)[:]
            for split in splits
        )
        image_encoders.append((train, test))
    grey, grey_test = (thumbnails(split["path"].to_pylist()) for split in splits)
    rows: dict[str, list[Pair]] = {
        "CLIP alone": [],
        "with the image encoders of the run": image_encoders,
        "with noise": [noise(data)],
        "with a random projection of CLIP's features": [projection(data)],
        "with grey thumbnails": [(grey, grey_test)],
        "with CLIP's own features again": [(data.features, data.test_features)],
    }
    print(f"| {args.results} | labels | test, CLIP alone | test, all models | weights |")
    print("|---|---|---|---|---|")
    for name, pairs in rows.items():
        print(line(name, data, pairs, "{:.2f}".format), flush=True)


if __name__ == "__main__":
    main()
