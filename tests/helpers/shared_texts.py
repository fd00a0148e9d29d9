"""Class texts that four devices share against those of one, in a process with four devices.

python -m tests.helpers.shared_texts CLIP_DIR
"""

import sys

import jax
import numpy as np

from dpt_jax.clip import packing
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts.config import PromptConfig
from tests.helpers.models import apply, packed_prompts
from tests.helpers.plain_towers import CLOSE, normal, random_prompts


def main(clip_dir: str) -> None:
    packing.ROW_TOKENS = 12
    clip = load_clip(clip_dir)
    colours, things = ("red", "green", "dark blue"), ("fish", "old car", "dog")
    names = [f"{colour} {thing}" for colour in colours for thing in things]
    names += ["boat", "a long boat"]
    model = PromptedCLIP(clip.config, PromptConfig(len(names), 4))
    packed = packed_prompts(names, clip.tokenizer, 4)
    prompts = random_prompts(model, seed=0)
    weight = normal(1, 4, len(names), clip.config.embed_dim)

    def run(axis, weight, clip_params, prompts):
        def features(prompts):
            return apply(model, clip_params, prompts, packed, axis, method="encode_text")

        found, pull = jax.vjp(features, prompts)
        gradient = pull(weight)[0]["text"]["context"]
        return found, jax.lax.psum(gradient, axis) if axis else gradient

    # The weights are no constants of the program: that compiles for long.
    on_four = jax.pmap(lambda *own: run("batch", *own), "batch", in_axes=(0, None, None))
    shared = on_four(weight, clip.params, prompts)
    alone = jax.jit(lambda *own: run(None, *own))(weight.sum(0), clip.params, prompts)
    assert jax.device_count() == 4, jax.devices()
    assert packed.tokens.shape[0] % 4, packed.tokens.shape
    for name, found, expected in zip(("features", "gradient"), shared, alone, strict=True):
        for device in found:
            np.testing.assert_allclose(device, expected, **CLOSE, err_msg=name)


if __name__ == "__main__":
    main(sys.argv[1])
