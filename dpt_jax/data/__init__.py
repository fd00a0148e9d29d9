"""Datasets, few-shot samples, image transforms and the loader."""
