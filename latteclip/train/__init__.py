"""Train a model, assemble one without training, and average trained ones."""
