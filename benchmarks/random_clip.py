"""CLIPs of the published sizes with random weights, and the published settings of a method."""

from ml_collections import ConfigDict

from dpt_jax.check.measure import SIZES, clip_shapes, random_clip
from dpt_jax.clip.tokenizer import openai_tokenizer
from dpt_jax.config import method_config

__all__ = ["SIZES", "clip_shapes", "openai_tokenizer", "published_settings", "random_clip"]


def published_settings(method: str, clip: str) -> ConfigDict:
    """Return the published settings of a method on ImageNet, for a CLIP of SIZES.

    Depths are at most its number of layers. Targets of the consistency losses have the dataset's
    template: they are computed before training, so steps take the same time.
    """
    config = method_config(method, "imagenet")
    sizes = SIZES[clip]
    for prompt, tower in ((config.text_prompt, sizes.text), (config.visual_prompt, sizes.vision)):
        prompt.depth = min(prompt.depth, tower.layers, sizes.vision.layers)
    config.loss.template = ""
    return config
