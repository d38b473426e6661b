"""The audit: a person's answers about images drawn at random, and what they say of the models."""
