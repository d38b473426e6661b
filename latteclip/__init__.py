"""LatteCLIP as a workflow: adapt CLIP to unlabelled images with synthetic texts."""

__version__ = "0.3.0"
