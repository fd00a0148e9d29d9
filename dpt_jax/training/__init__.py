"""Training: the step, the loop around it, one run from settings to results, and sweeps.

Import `run`, `plan` and `sweep`; `step`, `loop` and `optimizer` are for benchmarks and tests.
"""
