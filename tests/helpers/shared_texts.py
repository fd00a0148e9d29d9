"""Class texts that four devices share against those of one, in a process with four devices.

python -m tests.helpers.shared_texts CLIP_DIR
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.pretrained import load_clip
from dpt_jax.methods import PromptConfig
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts import text
from tests.helpers.plain_towers import CLOSE, normal, random_prompts


def main(clip_dir: str) -> None:
    text.ROW = 12
    clip = load_clip(clip_dir)
    colours, things = ("red", "green", "dark blue"), ("fish", "old car", "dog")
    names = [f"{colour} {thing}" for colour in colours for thing in things]
    names += ["boat", "a long boat"]
    model = PromptedCLIP(clip.config, PromptConfig(len(names), 4))
    layout = text.prompt_layout(names, clip.tokenizer, 4)
    prompts = random_prompts(model, seed=0)
    weight = normal(1, 4, len(names), clip.config.embed_dim)

    def run(axis, weight, clip_params, prompts):
        def features(prompts):
            params = {"clip": clip_params, "prompts": prompts}
            return model.encode_texts(params, layout, jnp.ones(weight.shape), axis).learned

        found, pull = jax.vjp(features, prompts)
        gradient = pull(weight)[0]["text"]["context"]
        return found, jax.lax.psum(gradient, axis) if axis else gradient

    # The weights are no constants of the program: that compiles for long.
    on_four = jax.pmap(lambda *own: run("batch", *own), "batch", in_axes=(0, None, None))
    shared = on_four(weight, clip.params, prompts)
    alone = jax.jit(lambda *own: run(None, *own))(weight.sum(0), clip.params, prompts)
    assert jax.device_count() == 4, jax.devices()
    assert layout.tokens.shape[0] % 4, layout.tokens.shape
    for name, found, expected in zip(("features", "gradient"), shared, alone, strict=True):
        for device in found:
            np.testing.assert_allclose(device, expected, **CLOSE, err_msg=name)


if __name__ == "__main__":
    main(sys.argv[1])
