"""Judge the demo's two models on validation images, which no training and no demo run has seen.

    python tools/demo_models/judge.py

Prints the figures of `latteclip/demo/README.md`. Needs neither vLLM nor a GPU.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import generate_textures as textures
import numpy as np
import open_clip
import torch
import train_clip
import train_llava
from descriptions import NOUNS, size_word
from generate_textures import CLASSNAMES, Attributes
from PIL import Image
from training import normalise, to_channels
from transformers import AutoProcessor, LlavaForConditionalGeneration

from latteclip.core.devices import keep_big_buffers

log = logging.getLogger(__name__)

SEED = 1
TEMPLATE = "a photo of a {} texture."
CLIP_GAPS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 1.0)
CAPTION_GAPS = (0.0, 0.3, 0.6, 0.7, 0.85)
BATCH = 100


class Clip:
    """Return the demo's CLIP as stock open_clip loads it."""

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder}"
        self.model = open_clip.create_model_and_transforms(name)[0].eval()
        tokens = open_clip.get_tokenizer(name)([TEMPLATE.format(c) for c in CLASSNAMES])
        with torch.no_grad():
            self.classes = self.model.encode_text(tokens, normalize=True)  # [C, D]

    @torch.no_grad()
    def classify(self, images: np.ndarray) -> np.ndarray:
        """Return zero-shot labels [N] of uint8 images [N, 64, 64, 3]."""
        scores = [
            self.model.encode_image(normalise(batch), normalize=True) @ self.classes.T
            for batch in to_channels(images).split(BATCH)
        ]
        return torch.cat(scores).argmax(1).numpy()


class Captioner:
    """Return the demo's LLaVA as stock transformers loads it."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        )

    @torch.no_grad()
    def caption(self, prompt: str, pictures: np.ndarray) -> list[str]:
        """Return greedy answers about uint8 pictures [N, H, W, 3]."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}])
        answers: list[str] = []
        for start in range(0, len(pictures), BATCH):
            batch = [
                Image.fromarray(picture) for picture in pictures[start : start + BATCH]
            ]
            inputs = self.processor(
                images=batch, text=[text] * len(batch), return_tensors="pt"
            )
            tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=40)  # type: ignore[misc]
            new = tokens[:, inputs.input_ids.shape[1] :]
            answers += self.processor.batch_decode(new, skip_special_tokens=True)
        return [answer.strip() for answer in answers]


def score(captions: Sequence[str], attributes: Sequence[Attributes]) -> dict[str, float]:
    """Return the percentage of image descriptions that name each attribute correctly."""
    pairs = list(zip(captions, attributes, strict=True))
    directed = [(text, a) for text, a in pairs if a.orientation]
    hits = {
        "classname": [a.classname in text.split() for text, a in pairs],
        "noun": [NOUNS[a.classname] in text.split() for text, a in pairs],
        "foreground": [
            a.foreground in text.split(" on a ")[0].split() for text, a in pairs
        ],
        "background": [f"on a {a.background} background" in text for text, a in pairs],
        "size": [f"with {size_word(a)} " in text for text, a in pairs],
        "orientation": [f" {a.orientation} " in text for text, a in directed],
        "finish": [f", {a.finish}." in text for text, a in pairs],
    }
    return {name: 100 * float(np.mean(hit)) for name, hit in hits.items()}


def draw_groups(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for every image four images [N, 4] that share its pseudo-label."""
    return np.stack([rng.choice(np.flatnonzero(labels == label), 4) for label in labels])


def score_groups(
    captions: Sequence[str], groups: np.ndarray, attributes: Sequence[Attributes]
) -> dict[str, float]:
    """Return the percentage of groups with a majority class whose description names it."""
    named = []
    for text, group in zip(captions, groups, strict=True):
        ((classname, count),) = Counter(attributes[i].classname for i in group).most_common(
            1
        )
        if count >= 3:
            named.append(classname in text.split(" textures ")[0].split())
    return {
        "groups of one class, percent": 100 * len(named) / len(groups),
        "classname": 100 * float(np.mean(named)),
        "distinct texts": len(set(captions)),
    }


def _row(gap: float, figures: dict[str, float]) -> str:
    return f"gap {gap:.2f}: " + ", ".join(
        f"{name} {value:.1f}" for name, value in figures.items()
    )


def main() -> None:
    """Log one line for each model and gap."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", type=Path, default=train_clip.FOLDER)
    parser.add_argument("--llava", type=Path, default=train_llava.FOLDER)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    keep_big_buffers()
    clip = Clip(arguments.clip)
    captioner = Captioner(arguments.llava)
    for gap in CLIP_GAPS:
        images, attributes = textures.generate(2000, gap, SEED)
        truth = [CLASSNAMES.index(a.classname) for a in attributes]
        log.info(
            _row(
                gap, {"CLIP zero-shot top-1": 100 * (clip.classify(images) == truth).mean()}
            )
        )
    for gap in CAPTION_GAPS:
        images, attributes = textures.generate(500, gap, SEED)
        captions = captioner.caption(train_llava.IMAGE_PROMPT, images)
        log.info(_row(gap, score(captions, attributes)))
        groups = draw_groups(clip.classify(images), np.random.default_rng(SEED))
        pictures = train_llava.group_pictures(train_llava.to_cells(images)[groups])
        captions = captioner.caption(
            train_llava.GROUP_PROMPT, pictures.permute(0, 2, 3, 1).numpy()
        )
        log.info(_row(gap, score_groups(captions, groups, attributes)))


if __name__ == "__main__":
    main()
