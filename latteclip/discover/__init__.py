"""Classes of images that have no class names: proposed by names and features, then corrected."""
