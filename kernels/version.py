"""The version of the project, which the package metadata and ``--version`` share."""

__version__ = "0.1.0"
