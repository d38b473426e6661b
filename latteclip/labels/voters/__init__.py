"""Sources of votes for the classes of training images."""
