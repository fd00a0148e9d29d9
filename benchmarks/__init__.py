"""Benchmarks: each script prints what it measures, with the machine and the versions."""
