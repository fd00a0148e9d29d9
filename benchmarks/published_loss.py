"""What this package makes of a step of published code: how much is learned, and the loss."""

import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from benchmarks.random_clip import SIZES, openai_tokenizer, published_settings
from dpt_jax.clip.blocks import Array, Params
from dpt_jax.clip.files import Tensors, read_tensors
from dpt_jax.clip.layouts import params_of
from dpt_jax.clip.packing import pack
from dpt_jax.config import prompt_config
from dpt_jax.convert.published import prompts_from_published
from dpt_jax.losses import Rows, count, losses
from dpt_jax.model import PromptedCLIP, init_prompts
from dpt_jax.prompts.text import context_tokens, prompted_texts


class Counterpart:
    """A method of this package with its published settings, on a CLIP of SIZES."""

    def __init__(self, method: str, clip: str, names: Sequence[str]) -> None:
        """Take the names of the classes."""
        self.config, self._sizes = published_settings(method, clip), SIZES[clip]
        tokenizer = openai_tokenizer()
        words = context_tokens(self.config.text_prompt.init, tokenizer)
        self.prompted = prompt_config(
            self.config, len(names), self._sizes.vision.layers, len(words)
        )
        length = self.prompted.text_length
        self._packed = pack(prompted_texts(names, tokenizer, length, fixed=words[length:]))
        self._model = PromptedCLIP(self._sizes, self.prompted)

    def learned(self) -> int:
        """Return how many values are learned."""
        shapes = jax.eval_shape(functools.partial(init_prompts, self._model), jax.random.key(0))
        return sum(math.prod(shape.shape) for shape in jax.tree.leaves(shapes))

    def loss(
        self,
        weights: pathlib.Path,
        modules: dict[str, Tensors],
        texts: np.ndarray | None,
        images: np.ndarray,
        labels: np.ndarray,
    ) -> float:
        """Return the loss of the first epoch.

        weights: a file of CLIP under OpenAI's names. modules: what is learned in each of the
        published modules, by their names. texts: plain CLIP's (C, E), None where the loss needs
        none. images: (B, 3, H, W), float32, normalised. labels: (B,).
        """
        file, config = epath.Path(weights), self.prompted
        params = {
            "clip": params_of(read_tensors(file), self._sizes, file),
            "prompts": prompts_from_published(modules),
        }
        frozen = jnp.ones((config.classes, self._sizes.embed_dim)) if texts is None else texts
        target = jnp.asarray(frozen) if config.has_consistency else None
        guidance = self.config.loss.guidance_epochs > 0
        terms = losses(config, self.config.loss.alpha, guidance)

        def total(params: Params, images: Array, labels: Array) -> Array:
            apply: Any = functools.partial(self._model.apply, {"params": params})
            texts = apply(self._packed, jnp.asarray(frozen), None, target, method="texts")
            outputs, rows = apply(images, texts), Rows(labels, jnp.ones(len(labels)))
            counts = count(outputs.zero_shot.indices, rows, self._model.cavpt_layers)
            return jnp.asarray(
                sum(loss(outputs, rows, counts, guidance) for loss in terms.values())
            )

        return float(jax.jit(total)(params, images.transpose(0, 2, 3, 1), labels))
