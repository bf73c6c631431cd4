"""aprtui: a terminal inspector for the forward pass of language models."""

__all__ = ["__version__"]

__version__ = "0.1.0"
