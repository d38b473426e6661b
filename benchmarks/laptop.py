"""Make a folder to time a whole run in: photographs and a CLIP of random weights.

    python benchmarks/laptop.py FOLDER PHOTOS [--model ViT-B-32] [--images 1000]
    cd FOLDER
    latteclip workflow --cores 2 --configfile config.yaml --config limit=64
    latteclip status photos --estimate
    latteclip workflow --cores 2 --configfile config.yaml
    latteclip status photos

PHOTOS has a folder for each class. Its photographs are copied under other names until there are
enough. A caption names the class of each. The weights of a model change its answers and not its
times, so the second command estimates what the fourth measures. One epoch is trained, at a rate
that is not searched for: a default run has ten, for each of three seeds.
"""

import argparse
import csv
import itertools
import shutil
from pathlib import Path

import open_clip
import torch
import yaml

from latteclip.clip import model as clips
from latteclip.data.folder_files import IMAGE_SUFFIXES

METHODS = "zero_shot,zero_shot_adapted,image_prototypes,recommended_single"
RECIPE = {"epochs": 1, "lr": 1e-5}


def make_clip(name: str, folder: Path) -> None:
    """Write a CLIP of open_clip with random weights, as `local-dir:` reads it."""
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=None)
    config = open_clip.get_model_config(name)
    clip = clips.Clip(model, lambda: None, preprocess, config, torch.device("cpu"))
    clips.save_network(clip, folder)


def copy_photographs(source: Path, folder: Path, n: int) -> None:
    """Write n photographs, captions.csv and classes.txt, from a folder of class folders."""
    (folder / "photos").mkdir(parents=True)
    files = sorted(f for f in source.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    names = sorted({file.parent.name for file in files})
    (folder / "photos" / "classes.txt").write_text("\n".join(names))
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "caption"])
        for number, path in enumerate(itertools.islice(itertools.cycle(files), n)):
            name = f"{number:06d}{path.suffix}"
            shutil.copyfile(path, folder / "photos" / name)
            writer.writerow([name, f"a photo of a {path.parent.name}."])


def write_config(folder: Path) -> None:
    """Write config.yaml."""
    config = {
        "dataset": "photos",
        "image_dir": "photos",
        "clip": {"model": f"local-dir:{folder.resolve() / 'clip'}", "pretrained": None},
        "captioner": {
            "engine": "file",
            "images_file": str(folder.resolve() / "captions.csv"),
        },
        "method": METHODS,
        "seeds": 1,
        "methods": {"recommended_single": {"finetune": RECIPE}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()
    copy_photographs(args.photos, args.folder, args.images)
    make_clip(args.model, args.folder / "clip")
    write_config(args.folder)


if __name__ == "__main__":
    main()
