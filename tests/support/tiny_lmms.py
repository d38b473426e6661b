"""Checkpoints of the multimodal architectures that people use, tiny and with random weights.

Their tokenizers are of letters, and their chat templates have the words of the real ones.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from train_llava import name_for_both

# A conversation: what stands before and after a turn of the user, an image, and before the answer.
CHATML = ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_VISION = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64}
QWEN_MARKS = ("vision_start", "vision_end", "image_pad", "video_pad")
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
}
SIDE = 56  # of a square, in pixels
SQUARE = {"height": SIDE, "width": SIDE}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@dataclass(frozen=True)
class Tokens:
    """A tokenizer of letters and the numbers of its flags."""

    tokenizer: transformers.PreTrainedTokenizerFast
    text: dict  # what the configuration of the language model says of them

    def number(self, token):
        return self.tokenizer.convert_tokens_to_ids(token)


def tokens(end, pad, *flags, begin=None, **named):
    """Of a text, with an end token, padding and further flags, of which some have names.

    begin: the token that the tokenizer puts before a text, if any.
    """
    letters = [*map(chr, range(33, 127)), "Ġ", "Ċ"]  # of ASCII, as bytes are written
    first = [begin] if begin else []
    special = list(dict.fromkeys([end, pad, *flags, *named.values(), *first]))
    vocabulary = {token: number for number, token in enumerate([*letters, *special])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if begin:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, vocabulary[begin])]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        extra_special_tokens=named or list(flags),
        additional_special_tokens=None,
    )
    text = {
        **TEXT,
        "vocab_size": len(vocabulary),
        "eos_token_id": vocabulary[end],
        "bos_token_id": vocabulary[pad],
        "pad_token_id": vocabulary[pad],
        "rope_parameters": ROPE,
    }
    return Tokens(tokenizer, text)


def template(before, after, answer, image):
    return (
        f"{{% for message in messages %}}{before}{{% for content in message['content'] %}}"
        f"{{% if content['type'] == 'image' %}}{image}{{% else %}}{{{{ content['text'] }}}}"
        f"{{% endif %}}{{% endfor %}}{after}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )


def save(folder, kind, config, processor, own):
    """Save a model with random weights that tells pictures apart, and its processor."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).float()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 6
    model.generation_config.eos_token_id = own.text["eos_token_id"]
    model.save_pretrained(folder)
    if config.vision_config.model_type == "clip_vision_model":
        name_for_both(Path(folder) / "model.safetensors")
    processor.save_pretrained(folder)
    return str(folder)


def llava_next(folder):
    """LLaVA-1.6: CLIP and Mistral; an overview and tiles, as many as the picture has room for.

    The tokenizer adds the token with which its template does not begin.
    """
    grids = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    tiles = {
        "image_grid_pinpoints": [[height * SIDE, width * SIDE] for height, width in grids]
    }
    pictures = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=SQUARE, **tiles
    )
    chat = template("[INST] ", " [/INST]", "", "<image>\n")
    own = tokens("</s>", "<pad>", "<image>", begin="<s>")
    processor = transformers.LlavaNextProcessor(
        pictures,
        own.tokenizer,
        patch_size=VISION["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    )
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.MistralConfig(sliding_window=None, **own.text),
        image_token_id=own.number("<image>"),
        image_seq_length=(SIDE // VISION["patch_size"]) ** 2,
        **tiles,
    )
    return save(folder, "LlavaNext", config, processor, own)


def qwen3_vl(folder):
    """Qwen3-VL: pictures in their own shape; a position has three numbers."""
    own = tokens(
        "<|im_end|>", "<|endoftext|>", "<|im_start|>", *(f"<|{m}|>" for m in QWEN_MARKS)
    )
    pixels = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**pixels, size=size),
        own.tokenizer,
        transformers.Qwen3VLVideoProcessor(**pixels, size=size),
        chat_template=template(*CHATML, QWEN_IMAGE),
    )
    three = {"mrope_section": [4, 6, 6], "mrope_interleaved": True}
    vision = {**QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = transformers.Qwen3VLConfig(
        text_config={**own.text, "rope_parameters": {**ROPE, **three}},
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 16, **vision},
        image_token_id=own.number("<|image_pad|>"),
        video_token_id=own.number("<|video_pad|>"),
        vision_start_token_id=own.number("<|vision_start|>"),
        vision_end_token_id=own.number("<|vision_end|>"),
    )
    return save(folder, "Qwen3VL", config, processor, own)
