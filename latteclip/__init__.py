"""LatteCLIP as a workflow: adapt CLIP to unlabelled images with synthetic texts."""

__version__ = "0.1.0"  # also where the package runs from its folder and is not installed
