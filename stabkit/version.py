"""The version of the package, apart from its public face so that every module can name it."""

__version__ = "0.3.0"
