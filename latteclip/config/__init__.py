"""The configuration, and what rules are given of it."""
