"""Datasets, few-shot samples, the checks before training, and the loader."""
