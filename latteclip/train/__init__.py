"""One training loop for exchangeable objectives."""
