"""The version of the package, known also where it runs from its folder and is not installed."""

__version__ = "0.1.0"
