"""`PromptedCLIP`: a frozen CLIP and the prompts that are switched on. `outputs`: what it makes.

Pure functions of parameters and arrays, which know nothing of files, settings or training.
"""

from dpt_jax.model.prompted_clip import PromptedCLIP

__all__ = ["PromptedCLIP"]
