"""Use a chosen model and its labels outside the workflow."""
