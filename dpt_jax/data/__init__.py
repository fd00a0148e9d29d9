"""Datasets, few-shot samples and the loader.

`dataset.load_dataset` reads a source (`folder`, `coop`, `tfds` or, for Python callers, `memory`)
and draws the shots; `look` checks them before training, and `loader` makes augmented batches.
"""
