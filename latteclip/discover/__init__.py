"""Classes of images that have no class names: proposed by names and looks, then corrected."""
