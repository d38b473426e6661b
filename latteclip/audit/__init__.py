"""Pages that ask a person about images, and what the answers say of labels and models."""
