"""Classify images, and print the path, class and probability of each with tabs between them."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

# For some of the others, Pillow runs programs.
FORMATS = ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF"]


class Model:
    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path)
        about = self.session.get_modelmeta().custom_metadata_map
        self.classnames = json.loads(about["classnames"])
        self.inputs = json.loads(about["inputs"])
        self.threshold = json.loads(about["threshold"])

    def __call__(self, path):  # scores [C] and probabilities [C]
        image = ImageOps.exif_transpose(Image.open(path, formats=FORMATS))
        if image.mode.startswith("I"):  # 16 bits, which convert("RGB") would clip
            image = (
                image.convert("I").point(lambda value: value / 256.0).convert("L")
            )
        image = image.convert("RGB")
        pixels = {each["name"]: prepare(image, **each) for each in self.inputs}
        return [
            x[0] for x in self.session.run(["scores", "probabilities"], pixels)
        ]


def prepare(image, name, resize, target, size, interpolation, fill, mean, std):
    sides = image.height, image.width
    ratios = [side / goal for side, goal in zip(sides, target)]
    if resize == "squash":
        new = target
    elif resize == "longest":
        new = [round(side / max(ratios)) for side in sides]
    else:
        axis = int(np.argmin(ratios))
        new = [side * target[axis] // sides[axis] for side in sides]
    image = image.resize(new[::-1], Image.Resampling[interpolation])
    canvas = Image.new("RGB", size[::-1], tuple(fill))
    canvas.paste(image, [gap(*pair) for pair in zip(size, new)][::-1])
    pixels = (np.float32(canvas) / 255 - np.float32(mean)) / np.float32(std)
    return pixels.transpose(2, 0, 1)[None]


def gap(side, inner):  # pixels before the picture, fewer than 0 where it is cut
    return (side - inner) // 2 if side > inner else -round((inner - side) / 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", nargs="+", help="image file, such as photo.jpg")
    paths = parser.parse_args().photo
    model = Model(Path(__file__).with_name("model.onnx"))
    status = 0
    for path in paths:
        try:
            shares = model(path)[1]
        except Exception as error:  # decoders fail in many ways on broken files
            print(f"skipped: {path}: {error}", file=sys.stderr)
            status = 3  # as that of latteclip predict
            continue
        abstained = " (abstained)" if shares.max() < model.threshold else ""
        print(
            f"{path}\t{model.classnames[shares.argmax()]}{abstained}\t{shares.max():.4f}"
        )
    sys.exit(status)
