"""`latteclip classes`."""


def classes(results: str, /) -> None:
    """Show the proposed classes."""
