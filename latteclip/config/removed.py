"""Names that were removed, and what to do instead: this release refuses them with that step.

Nothing else mentions them. The next release deletes this file.
"""

import re

# Keys of the configuration, by their path without the names of datasets, methods and labellers.
KEYS: dict[str, str] = {
    "class_groups": "add up the probabilities of the classes in predictions.parquet.",
}
# Options, formats and commands of `latteclip`, as they are typed.
OPTIONS: dict[str, str] = {
    "--roll-up": "use --topk and add up the probabilities of the classes of a group.",
    "--int8": "quantise model.onnx by onnxruntime.quantization.",
    "--push-to-hub": "run hf upload <user>/<name> FOLDER.",
    "--format datasets": "use --format imagefolder --copy, which load_dataset('imagefolder', "
    "data_dir=FOLDER) reads.",
}


def removed_key(path: list[str]) -> str | None:
    """Return what to do instead of a key, or of the section that it is in."""
    joined = f".{'.'.join(path)}."
    return next((step for key, step in KEYS.items() if f".{key}." in joined), None)


def removed_option(message: str) -> str | None:
    """Return what to do instead of a removed word that argparse does not accept."""
    words = set(re.findall(r"[\w-]+", message))
    for name, step in OPTIONS.items():
        if words.issuperset(name.split()):
            return f"{name} was removed: {step}"
    return None
