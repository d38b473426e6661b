"""From a source to the image index, and image files to batches."""
