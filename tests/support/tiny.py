"""Tiny models and datasets that tests run on, made on the spot from random numbers."""

import json
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import timm
import torch
import transformers
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from latteclip.captions.answers import AnswersMetadata
from latteclip.clip.model import Clip
from latteclip.core import tables
from latteclip.core.tables import IndexMetadata
from latteclip.data.images import checksum

ROOT = Path(__file__).parents[2]
DEMO_CLIP = ROOT / "latteclip" / "demo" / "models" / "clip"
DEMO_LLAVA = ROOT / "latteclip" / "demo" / "models" / "llava"
CONTEXT, VOCABULARY, SIDE, WIDTH = 16, 50, 32, 24
START, END = VOCABULARY - 2, VOCABULARY - 1
ENCODER, ENCODER_WIDTH = "test_vit", 64  # a network of timm
TEMPLATE = "a photo of a {}."
# Of a training that a test can wait for.
FINETUNE = {"epochs": 2, "warmup_steps": 1, "batch_size": 3, "lr": 1e-3}


def tokenize(texts):
    """One token a word, between START and END, padded with 0: LongTensor [T, CONTEXT]."""
    tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        words = [1 + zlib.crc32(word.encode()) % (START - 1) for word in text.split()]
        words = [START, *words[: CONTEXT - 2], END]
        row[: len(words)] = torch.tensor(words)
    return tokens


def tiny_clip(seed=0, **text):
    """A random CLIP; `text` overrides its CLIPTextCfg."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(
        WIDTH,
        CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=SIDE),
        CLIPTextCfg(
            **{
                "context_length": CONTEXT,
                "vocab_size": VOCABULARY,
                "width": 40,
                "heads": 4,
                "layers": 2,
                "eos_id": END,
                **text,
            }
        ),
    )
    for parameter in model.parameters():  # fresh biases are zero, which would hide mistakes
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    # A fresh tower hardly tells texts apart, which would leave the mixer's margins to rounding.
    model.token_embedding.weight.data *= 30
    transform = open_clip.image_transform(SIDE, is_train=False)
    config = {"embed_dim": WIDTH}
    return Clip(model.eval(), lambda: tokenize, transform, config, torch.device("cpu"))


PAD, UNKNOWN, BEGIN, EOS = range(4)
WORDS = (
    *("a", "photo", "of", "the", "with", "and", "thing", "sky"),
    *("red", "blue", "grey", "striped", "dotted", "woven"),
)
VIT = {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": CONTEXT, "width": 40, "heads": 4, "layers": 2}
OWN = {
    "vocab_size": 4 + len(WORDS),
    "hf_tokenizer_name": "own",
    "eos_id": EOS,
    "pad_id": PAD,
}
AT_END = {**TEXT, **OWN, "pool_type": "eos"}
HF = {"context_length": CONTEXT, "hf_tokenizer_name": "own", "hf_proj_type": "linear"}


def timm_vision(name, pool, projection="linear", size=64):
    return {
        **{"image_size": size, "timm_model_name": name},
        **{"timm_pool": pool, "timm_proj": projection},
    }


def backbone(vision, text, preprocess=None, **more):
    """open_clip's model_cfg and preprocess_cfg."""
    config = {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}
    return config | more, preprocess or {}


# By kind. A model whose text tower names a tokenizer has the one of `write_tokenizer`, any other
# that of OpenAI's CLIP.
BACKBONES = {
    "vit": backbone(
        {**VIT, "image_size": 48, "patch_size": 16},
        {**TEXT, "vocab_size": 49408},
        {
            **{"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
            **{"interpolation": "bilinear", "resize_mode": "longest", "fill_color": 90},
        },
    ),
    "siglip": backbone(
        timm_vision("test_vit", "map", "none", 160),
        {
            **{**TEXT, **OWN, "tokenizer_kwargs": {"clean": "canonicalize"}},
            **{"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
            **{"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
        },
        {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
        **{"embed_dim": 64, "custom_text": True},
        **{"init_logit_bias": -10, "init_logit_scale": 4.77},
    ),
    "convnext": backbone(timm_vision("test_convnext", ""), AT_END),
    "custom_text": backbone(
        VIT, {**AT_END, "proj_bias": True}, custom_text=True, quick_gelu=True
    ),
    "hf_mean": backbone(VIT, {**HF, "hf_pooler_type": "mean_pooler"}),
    "coca": backbone(
        {**VIT, "attentional_pool": True, "output_tokens": True},
        {**TEXT, **OWN, "embed_cls": True, "output_tokens": True},
        multimodal_cfg={**TEXT, "vocab_size": OWN["vocab_size"]},
        custom_text=True,
    ),
    "resnet": backbone(
        {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}, AT_END
    ),
}


def write_backbone(kind, folder):
    """A random model of a kind of BACKBONES as a folder; the name by which it is loaded."""
    config, preprocess = BACKBONES[kind]
    text = dict(config["text_cfg"])
    if "hf_tokenizer_name" in text:
        write_tokenizer(folder)
    if "hf_pooler_type" in text:
        text["hf_model_name"] = write_bert(folder / "text_tower")
    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": {**config, "text_cfg": text}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    torch.manual_seed(zlib.crc32(kind.encode()))
    model = open_clip.create_model(f"local-dir:{folder}")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():  # as in tiny_clip
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)
            if name.endswith(("token_embedding.weight", "word_embeddings.weight")):
                tensor *= 30
            if name == "text_decoder.text_projection":  # open_clip leaves it uninitialised
                tensor.normal_()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def write_tokenizer(folder):
    """A Hugging Face tokenizer of WORDS, as open_clip loads it: BEGIN, a token a word, EOS."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    ids = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BEGIN), ("</s>", EOS)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)


def write_bert(folder):
    """A random BERT, configuration and weights; its folder."""
    config = transformers.BertConfig(
        vocab_size=OWN["vocab_size"],
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,  # a fresh one hardly tells texts apart
        pad_token_id=PAD,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def write_encoder(folder, *, seed=0, change=None, weights=None):
    """Write the folder and return its name as an image encoder.

    Args:
        change: keys of config.json.
        weights: a function from the weights to those that are written.
    """
    torch.manual_seed(seed)
    network = timm.create_model(ENCODER, num_classes=5, img_size=SIDE)
    state = network.state_dict()
    folder.mkdir(parents=True)
    save_file(weights(state) if weights else state, folder / "model.safetensors")
    config = {
        "architecture": ENCODER,
        "num_classes": 5,
        "model_args": {"img_size": SIDE},
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "crop_pct": 1.0,
            "url": "of no use",
        },
    }
    (folder / "config.json").write_text(json.dumps(config | (change or {})))
    return f"local-dir:{folder}"


def network_of(folder):
    """The network with the weights of a folder, without its classifier."""
    network = timm.create_model(ENCODER, num_classes=5, img_size=SIDE)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.reset_classifier(0)
    return network.eval()


def write_pictures(folder, n, *, seed=0, size=(70, 64)):
    """n PNGs of random coloured noise; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(n):
        colour = rng.integers(0, 200, 3)
        noise = rng.integers(0, 56, (size[1], size[0], 3))
        path = folder / f"{number:03d}.png"
        Image.fromarray((colour + noise).astype(np.uint8)).save(path)
        paths.append(str(path))
    return paths


def write_index(
    path, files, splits, labels, classnames, written=None, image_ids=None, **metadata
):
    """An IMAGES table of picture files; a label may be None.

    written: names as the dataset has them, by class name.
    """
    columns = {
        "image_id": image_ids or [Path(file).name for file in files],
        "path": files,
        "split": splits,
        "label": labels,
        "classname": [None if label is None else classnames[label] for label in labels],
        "hashes": pa.nulls(len(files), pa.binary(96)),
    }
    columns["checksum"] = [
        checksum(Path(file).read_bytes()) if Path(file).is_file() else number.to_bytes(16)
        for number, file in enumerate(files)
    ]
    metadata = IndexMetadata(classnames, written or {}, **metadata)
    tables.write(path, columns, tables.IMAGES, metadata)
    return str(path)


def write_pseudo_labels(path, image_ids, labels, confidence=None, features=None, topk=1):
    """A PSEUDO_LABELS table: labels, one confidence or one per image, features or a stand-in."""
    n = len(image_ids)
    columns = {
        "image_id": image_ids,
        "pseudo_label": pa.array(labels, pa.int32()),
        "confidence": confidence if np.ndim(confidence) else [confidence] * n,
        "topk_labels": [[int(label)] * topk for label in labels],
        "image_features": [[1.0]] * n if features is None else features.tolist(),
    }
    tables.write(path, columns, tables.PSEUDO_LABELS)
    return str(path)


def write_captions(path, ids, captions, members=None, **columns):
    """A CAPTIONS table; without `members` every id is an image's."""
    n = len(ids)
    usual = {
        "id": ids,
        "members": members or [[name] for name in ids],
        "prompt": ["?"] * n,
        "caption": captions,
        "finish_reason": ["stop"] * n,
        "error": pa.nulls(n, pa.string()),
    }
    tables.write(path, usual | columns, tables.CAPTIONS, AnswersMetadata("a/captioner"))
    return str(path)


def write_class_scores(path, ids, options, scores):
    """A CLASS_SCORES table from lists of options and of log-probabilities."""
    n = len(ids)
    columns = {
        "image_id": ids,
        "options": pa.array(options, pa.list_(pa.int32())),
        "log_probabilities": pa.array(scores, pa.list_(pa.float32())),
        "error": pa.nulls(n, pa.string()),
    }
    tables.write(path, columns, tables.CLASS_SCORES)
    return str(path)
