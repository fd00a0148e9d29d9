"""The ground: hosts and devices, console, metrics, signals, paths, buckets. Knows nothing of CLIP.

Import `devices`, `console`, `metrics`, `signals`, `files` and `transfer`; only errors is below.
"""
