"""Classes as vectors: the features of their texts.

Letters: C classes, D embedding width.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from latteclip.clip import encode
from latteclip.clip import model as clips
from latteclip.core.class_words import ClassWords
from latteclip.core.prompts import class_texts


def class_embeddings(
    clip: clips.Clip,
    template: str | Sequence[str],
    classnames: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> torch.Tensor:
    """W0 [C, D], L2-normalised, on the CPU: row c = f_txt(T(c)) (LatteCLIP, section 3.1).

    Of several templates or names of a class, the features of all its texts are averaged, as in
    CLIP's own evaluation: each is L2-normalised, and so is their mean.

    Raises:
        UserError: the words do not fit the classes (`ClassWords`).
    """
    words = ClassWords.of(template, synonyms)
    names, rows = zip(*words.names(classnames), strict=True)
    features = [_text_features(clip, one, names) for one in words.templates]
    if len(features) == 1 and len(names) == len(classnames):
        return features[0]
    sums = torch.zeros(len(classnames), features[0].shape[1])
    sums.index_add_(0, torch.tensor(rows), torch.stack(features).sum(dim=0))
    return F.normalize(sums, dim=-1)


@torch.no_grad()
def _text_features(clip: clips.Clip, template: str, names: Sequence[str]) -> torch.Tensor:
    """Features of the filled template, one row per name, on the CPU."""
    return encode.encode_texts(clip, clip.tokenizer(class_texts(template, names))).cpu()
