"""Ask an engine about images, and keep its answers."""
