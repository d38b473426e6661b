"""Predictions, accuracies and the table over all runs."""
