"""What forks are forked with: all that training imports, and nothing that starts a thread."""

import types

import grain
import orbax.checkpoint
from jax._src import compiler
from transformers import CLIPTokenizer

import dpt_jax.runs

__all__ = ["CLIPTokenizer", "dpt_jax", "grain", "orbax"]

# JAX has host 0 alone keep what it compiled, for all hosts. What another one compiles on CPUs is of
# another name, so that it would compile everything at each start.
compiler.distributed = types.SimpleNamespace(
    global_state=types.SimpleNamespace(process_id=0, client=None)
)
