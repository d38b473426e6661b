"""The version of the package, known even where it runs from its folder without being installed."""

__version__ = "0.1.0"
