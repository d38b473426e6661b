"""CLIP models and image encoders: find, check, load, encode, save, classify."""
