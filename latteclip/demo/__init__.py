"""The demo: made textures, and tiny models that stand in for CLIP and LLaVA."""
