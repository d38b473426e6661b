"""What the words on a dataset's page mean."""

from collections.abc import Collection

WORDS = {
    "Zero-shot CLIP": "The pretrained model as it is. It gives an image the class whose name, in "
    "a sentence such as \u201ca photo of a cat.\u201d, is most like the image.",
    "Pseudo-label": "The class that zero-shot CLIP gives a training image. It may be wrong.",
    "Confidence": "How sure zero-shot CLIP is of a class: a probability, which is often too high.",
    "Vote": "The class that the caption of a training image speaks for, or the captioner\u2019s "
    "scores of the classes. A model that is right more often agrees with more votes, though votes "
    "may be wrong too. Only votes of images that a model did not learn from count for it.",
    "Seed": "The number that random choices of a training start from. Trainings that differ in "
    "nothing else show how much of a result is chance.",
    "Top-1, top-5": "The share of images whose class is the model\u2019s best, or among its five "
    "best.",
    "Per-class recall": "The share of a class\u2019s images that are given it, as the mean over "
    "classes: small classes count as much as large ones.",
    "95 % interval": "Such intervals hold the truth 95 times of 100.",
}
METHODS = {
    "zero_shot_calibrated": "Zero-shot CLIP without its liking for some classes, which it has "
    "whatever an image shows.",
    "image_prototypes": "A class is given to images that look like the training images of the "
    "class, by zero-shot CLIP and captions. Nothing is trained.",
    "label_propagation": "Classes spread between images that look alike. Nothing is trained.",
    "flyp": "CLIP fine-tuned on its own pseudo-labels.",
    "flyp_supervised": "CLIP fine-tuned on the true labels: an upper bound.",
    "latteclip": "CLIP fine-tuned as the LatteCLIP paper does, with captions of images and groups.",
    "recommended": "The average of several fine-tunings of CLIP, on labels by zero-shot CLIP, "
    "captions and image prototypes together.",
}


def words(methods: Collection[str]) -> dict[str, str]:
    """The words of a page, and the methods that were run."""
    return WORDS | {name: METHODS[name] for name in methods if name in METHODS}
