"""The ground: hosts and devices, console, metrics, signals, paths. Knows nothing of CLIP.

Import `devices`, `console`, `metrics`, `signals` and `files`; only errors is below.
"""
