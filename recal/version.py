"""The version of recal."""

__version__ = "0.1.0"
