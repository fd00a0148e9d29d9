"""The parts of the TPU benchmark that need no TPU compiler.

Its programs are lowered in tests/test_precision.py.
"""
