"""The learned prompts, one module each: text prompt, visual prompt, CAVPT, CoCoOp's meta-net."""

from dpt_jax.clip.blocks import Params

# The learned parameters by part: {"text": …, "visual" or "coupling": …, "meta_net": …,
# "cavpt": …, "classifier": …}, as far as the method has them.
Prompts = Params
