"""The version, in one place that a build can read without importing anything else."""

__version__ = "0.2.0"
