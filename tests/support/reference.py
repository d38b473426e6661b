"""LatteCLIP and FLYP as the paper states them (arXiv 2410.08211, section 3), literally and slowly.

Every text is encoded alone, at full length, by the model's own `encode_text`; images and classes
are walked in plain loops. Nothing is shared with the package.
"""

import math
from dataclasses import dataclass, field


@dataclass
class Switches:
    """What the ablations switch."""

    alpha: float = 0.01
    class_description: bool = True
    image_description: bool = True
    group_description: bool = True
    mixer_weights: bool = True
    mixer_prototypes: str = "step"
    zero_shot_loss: bool = True
    finetuned_loss: bool = True
    prototypes: bool = True


@dataclass
class Texts:
    """Class descriptions [C], and for each image of the batch its two other descriptions [B]."""

    classes: list
    images: list
    groups: list


@dataclass
class Step:
    """What one step makes: the loss, and the values [class, vector] for the prototypes."""

    loss: object
    finetuned: list
    values: list = field(default_factory=list)


def unit(vector):
    return vector / (vector * vector).sum().sqrt()


def text_feature(clip, text):
    return unit(clip.model.encode_text(clip.tokenizer([text]))[0])


def image_feature(clip, image):
    return unit(clip.model.encode_image(image[None])[0])


def dot(a, b):
    return (a * b).sum()


def class_features(clip, texts):
    return [text_feature(clip, text) for text in texts]


def best_class(feature, prototypes):
    scores = [dot(feature, prototype).item() for prototype in prototypes]
    return scores.index(max(scores))


def weight(feature, prototypes):
    scores = sorted(
        (dot(feature, prototype).item() for prototype in prototypes), reverse=True
    )
    return scores[0] - scores[1] + 1e-6


def cross_entropy(scores, own):
    return sum(score.exp() for score in scores).log() - scores[own]


def contrastive(features, targets, scale):
    n = len(features)
    logits = [[scale * dot(v, z) for z in targets] for v in features]
    rows = sum(cross_entropy(logits[i], i) for i in range(n)) / n
    columns = sum(cross_entropy([logits[j][i] for j in range(n)], i) for i in range(n)) / n
    return (rows + columns) / 2


def flyp(clip, images, pseudo_labels, texts, epoch_classes):
    features = [image_feature(clip, image) for image in images]
    finetuned = [best_class(feature, epoch_classes) for feature in features]
    targets = [text_feature(clip, texts.classes[label]) for label in pseudo_labels]
    return Step(contrastive(features, targets, clip.model.logit_scale.exp()), finetuned)


def latteclip(clip, images, pseudo_labels, texts, prototypes, epoch_prototypes, switches):
    """Steps 1 to 6 of the method for one batch."""
    if not switches.prototypes:
        prototypes = [row.detach() for row in class_features(clip, texts.classes)]
    against = epoch_prototypes if switches.mixer_prototypes == "epoch" else prototypes
    features = [image_feature(clip, image) for image in images]
    finetuned = [best_class(feature, prototypes) for feature in features]
    step = Step(0.0, finetuned)
    for labels, used in (
        (pseudo_labels, switches.zero_shot_loss),
        (finetuned, switches.finetuned_loss),
    ):
        if not used:
            continue
        targets = []
        for i, label in enumerate(labels):
            described = []
            if switches.class_description:
                described.append(text_feature(clip, texts.classes[label]))
            if switches.image_description:
                described.append(text_feature(clip, texts.images[i]))
            if switches.group_description:
                described.append(text_feature(clip, texts.groups[i]))
            weights = [
                weight(u, against) if switches.mixer_weights else 1.0 for u in described
            ]
            mixed = sum(w * u for w, u in zip(weights, described, strict=True)) / sum(
                weights
            )
            target = mixed
            if switches.prototypes:
                target = prototypes[label] + switches.alpha * (mixed - prototypes[label])
            targets.append(target)
            step.values.append((label, target.detach()))
        step.loss = step.loss + contrastive(features, targets, clip.model.logit_scale.exp())
    return step


def updated(prototypes, values):
    """Step 7: the prototypes after the step."""
    result = []
    for c, prototype in enumerate(prototypes):
        own = [value for label, value in values if label == c]
        result.append(unit(sum(own) / len(own)) if own else prototype)
    return result


def learning_rate(step, steps, warmup, peak):
    """Section 4: a straight line to the peak, then half a wave of the cosine down to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (math.cos(math.pi * (step - warmup) / (steps - warmup)) / 2 + 1 / 2)


WITHOUT_DECAY = ("ln_", "bias", "class_embedding", "logit_scale")


class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2, with the numbers of the paper's code."""

    def __init__(self, model):
        self.named = dict(model.named_parameters())
        self.first = dict.fromkeys(self.named, 0.0)
        self.second = dict.fromkeys(self.named, 0.0)
        self.steps = 0

    def step(self, gradients, rate):
        """Take a step down the gradients, which follow the parameters of the model."""
        self.steps += 1
        for (name, weight), gradient in zip(self.named.items(), gradients, strict=True):
            self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
            self.second[name] = 0.98 * self.second[name] + 0.02 * gradient**2
            first = self.first[name] / (1 - 0.9**self.steps)
            second = self.second[name] / (1 - 0.98**self.steps)
            decay = 0.0 if any(part in name for part in WITHOUT_DECAY) else 0.2
            move = first / (second.sqrt() + 1e-6) + decay * weight.data
            weight.data = weight.data - rate * move
        scale = self.named["logit_scale"]
        scale.data = scale.data.clamp(0, math.log(100))
