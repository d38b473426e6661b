"""Labels without a human."""
