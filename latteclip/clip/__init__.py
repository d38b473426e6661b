"""CLIP models: load, encode, save, classify."""
