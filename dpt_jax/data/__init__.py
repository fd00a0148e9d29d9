"""Datasets, few-shot samples and the loader.

`dataset.load_dataset` reads a source (`folder`, `coop`, `tfds` or, for Python callers,
`folder.in_memory`) and draws the shots; `dataset.look` checks them before training, and `loader`
makes augmented batches.
"""
