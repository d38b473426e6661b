"""A classifier made anew from the features of the tuned model: ours, beyond the paper.

Letters: N training images, C classes, D embedding width.
"""

from latteclip.clip import model as clips
from latteclip.clip.class_embeddings import class_embeddings
from latteclip.clip.classifier import Classifier
from latteclip.clip.features import encode_files
from latteclip.labels.fusion import fuse
from latteclip.labels.witnesses import Images, LabelVotes
from latteclip.train.data import TrainingData


def remade(
    clip: clips.Clip, inputs: TrainingData, template: str, batch_size: int, threads: int
) -> Classifier:
    """The head of `image_prototypes`, the labels of the training as the votes.

    Args:
        clip: the tuned model.
        inputs: the N training images with their labels.
        template: of the class descriptions.
        batch_size: images encoded at once.
        threads: CPU threads.
    """
    clip.model.eval()
    features = encode_files(clip, inputs.paths, batch_size, threads)  # [N, D]
    texts = class_embeddings(clip, template, inputs.classnames)  # [C, D]
    scale = clip.model.logit_scale.exp().item()  # type: ignore[operator]
    images = Images.of(features, texts, scale)
    fused = fuse(images, LabelVotes(inputs.labels, len(texts)))
    return images.classifier(fused.weights, scale)
