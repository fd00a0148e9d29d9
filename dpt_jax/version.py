"""The version of this package, apart from the API, which imports most of it."""

__version__ = "0.2.0"
