"""Names that were removed, and what to do instead: this release refuses them with that step.

Nothing else mentions them. The next release deletes this file.
"""

import re

# Keys of the configuration, by their path or its end, without numbers in lists.
KEYS: dict[str, str] = {
    "class_groups": "use predict --topk and add up the probabilities of the classes of a group.",
    "captions": "set compute.shards in place of captions.shards.",
    "container": "run the commands inside the image of envs/Dockerfile.",
    "discover.max_new_tokens": "leave it out: a name has at most 16 tokens.",
    "discover.file": "set captioner.images_file.",
    "captioner.timeout": "leave it out: a server has 120 seconds.",
    "groups.gap": "leave it out: it is 20/672 of groups.canvas, as in the paper's code.",
    "groups.groups_per_class": "set captioner.max_images.",
    "groups.layout": "leave it out: a group is one picture of all four images.",
    "groups.seed": "leave it out: it is 0.",
    "split.classes": "set class_names to folders or discover, or split.class_list to a file.",
    "split.test_fraction": "leave it out: it is 0.3; folders train and test say otherwise.",
    "scores.topk": "leave it out: it is 5.",
    "labellers.share": "leave it out: a file may have votes about some of the images.",
    "labellers.pretrained": "write model: open_clip:<model>/<tag>.",
    "micro_batch": "leave it out: it is halved where memory ends.",
    "split.suffix": "leave it out: a listed image without a suffix is a .jpg.",
    "split.image": "leave one image of each sample in the tar.",
    "into": "leave it out: files lie in the dataset's folder.",
    "unpack": "leave it out: shards (split.kind) are never unpacked.",
    "sources.type": "write hf: datasets/<repo>.",
    "prototypes": "leave it out: prototypes start from class texts, as in the paper.",
    "weight_decay": "leave it out: it is 0.2, as in the paper's code.",
    "inference": "leave it out: 256 images are encoded at once, and fewer where memory ends.",
    "threads": "set compute.threads.",
    "voters": "call them labellers.",
    "labellers.captioner": "set model, engine, prompt and max_images of the labeller.",
    "labellers.scores": "set max_images of the labeller.",
    "votes": "list who labels under labellers.",
    "batch_norm": "statistics of BatchNorm stay those of pretraining.",
    "beta1": "it is 0.9, as in the paper.",
    "beta2": "it is 0.98, as in the paper.",
    "cache_gib": "decoded images are cached on disk.",
    "compute.compile": "leave it out.",
    "eps": "it is 1e-6, as in the paper.",
    "gradient_checkpointing": "leave it out: fewer images are encoded at once where memory ends.",
    "steps_multiple_of": "it is 3, as in the paper's code.",
    "graph": "label propagation is gone; take method image_prototypes.",
    "head": "take method latteclip_fused, or image_prototypes for a classifier of image features.",
    "processes": "a training takes one GPU, and several trainings run at once.",
    "retrain": "models train again where their images, labels or settings changed.",
    "retrain_share": "models train again where their images, labels or settings changed.",
    "student": "take a small CLIP as clip.model, such as MobileCLIP2-S0.",
    "source.textures": "the demo's images are shards in the package; leave the key out.",
    "max_cost": "set max_images of captioner, of scores, or of an entry of labellers.",
    "captioner.price_input": "set max_images; a provider's console limits money.",
    "captioner.price_output": "set max_images; a provider's console limits money.",
    "captioner.concurrency": "set captioner.batch_size.",
    "captioner.requests_per_second": "set captioner.batch_size.",
    "captioner.retries": "leave it out: a request is sent up to six times.",
    "scores.file": "list your scores as a labeller of kind file.",
    "scores.share": "set scores.max_images.",
    "scores.choose": "leave it out: the images with the least certain label come first.",
    "scores.rounds": "leave it out: the images with the least certain label are asked about once.",
    "scores.min_gain": "set scores.max_images.",
    "scores.examples": "leave it out: a question shows one picture.",
    "scores.orders": "leave it out: options are listed in two orders.",
    "scores.none_option": "leave it out: 'none of these' is always an option.",
}
# Options, formats and commands of `latteclip`, as they are typed.
OPTIONS: dict[str, str] = {
    "--sdm": "install once with make install, or run inside the image of envs/Dockerfile.",
    "--offline": "run latteclip classes where the results are, or edit classes.txt.",
    "--actions": "edit classes.txt.",
    "--new": "look at the images marked unknown on the page of the dataset.",
    "--add": "write the class into classes.txt.",
    "--roll-up": "use --topk and add up the probabilities of the classes of a group.",
    "--int8": "quantise model.onnx by onnxruntime.quantization.",
    "--push-to-hub": "run hf upload <user>/<name> FOLDER.",
    "--format datasets": "use --format imagefolder, which load_dataset('imagefolder', "
    "data_dir=FOLDER) reads.",
    "--copy": "run cp -rL on the folder of links.",
}


def removed_key(path: list[str]) -> str | None:
    """Return what to do instead of a key, or of the section that it is in."""
    joined = f".{'.'.join(part for part in path if not part.isdigit())}."
    return next((step for key, step in KEYS.items() if f".{key}." in joined), None)


def removed_option(message: str) -> str | None:
    """Return what to do instead of a removed word that argparse does not accept."""
    if not message.startswith("unrecognized") and "invalid choice" not in message:
        return None
    words = set(re.findall(r"[\w-]+", message))
    for name, step in OPTIONS.items():
        if words.issuperset(name.split()):
            return f"{name} was removed: {step}"
    return None
