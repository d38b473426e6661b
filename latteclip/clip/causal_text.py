"""open_clip's causal text towers, for texts shorter than the context.

Letters: T texts, L tokens, D embedding width.
"""

from typing import Any, Self

import open_clip
import torch
from open_clip.transformer import TextTransformer, text_global_pool


class CausalText:
    """open_clip's causal text transformer, pooled at the end-of-text token.

    open_clip itself insists on texts of the full context length; this encodes shorter ones.
    """

    def __init__(self, tower: Any, pool_type: str, eos_id: int) -> None:
        self.tower, self.pool_type, self.eos_id = tower, pool_type, eos_id

    @classmethod
    def of(cls, model: torch.nn.Module) -> Self | None:
        """The text tower of a model; None where its feature may depend on what follows the text."""
        tower = text_tower(model)
        if isinstance(tower, open_clip.CLIP):
            found = cls(tower, tower.text_pool_type, tower.text_eos_id)
        elif isinstance(tower, TextTransformer) and tower.cls_emb is None:
            found = cls(tower, tower.pool_type, tower.eos_id)
        else:
            return None
        exact = tower.attn_mask is not None and found.pool_type in ("argmax", "eos")
        return found if exact else None

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """How many tokens [T] the feature of each text depends on."""
        if self.pool_type == "argmax":
            return tokens.argmax(dim=-1) + 1
        return (tokens == self.eos_id).int().argmax(dim=-1) + 1

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Features [T, D] of tokens [T, L] with L up to the context length."""
        tower, length = self.tower, tokens.shape[1]
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = text_global_pool(tower.ln_final(x), tokens, self.pool_type, self.eos_id)  # [T, width]
        if tower.text_projection is None:
            return x
        if isinstance(tower.text_projection, torch.nn.Linear):
            return tower.text_projection(x)
        return x @ tower.text_projection


def text_tower(model: torch.nn.Module) -> Any:
    """The module that holds the text tower's parts; open_clip.CLIP holds them itself."""
    return getattr(model, "text", model)
