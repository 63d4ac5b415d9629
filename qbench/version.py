"""The version of qbench, which runs record and bundles carry."""

__version__ = "0.1.0"
