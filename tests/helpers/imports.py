"""What forks are forked with: all that training imports, and nothing that starts a thread."""

import grain
import orbax.checkpoint
from transformers import CLIPTokenizer

import dpt_jax.training.run

__all__ = ["CLIPTokenizer", "dpt_jax", "grain", "orbax"]
