"""LatteCLIP as a workflow: adapt CLIP to unlabelled images with synthetic texts."""
