"""Datasets, few-shot samples and the loader.

`dataset.load_dataset` has a reader for each source: `folder` (class folders, archives and lists of
your own), `coop` (the published layout), `tfds` and, for Python callers, `memory`; it draws the
shots. `look` checks them before training, and `loader` makes augmented batches. `records` has the
types and decodes images; `catalogue` has the named datasets.
"""
