"""The pages that people read: one a dataset, and one that compares them all."""
