"""Dual-modality prompt tuning (DPT) of CLIP in JAX and Flax."""

__version__ = "0.1.0"
