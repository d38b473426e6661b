"""Read datasets: from a source to the image index, and from image files to batches."""
