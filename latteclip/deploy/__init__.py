"""A tuned model outside the workflow."""
