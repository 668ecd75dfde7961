"""The version, which pyproject.toml reads without importing torch."""

__version__ = '0.2.0'
