"""What this package makes of a step of published code: how much is learned, and the loss."""

import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from benchmarks.random_clip import SIZES, openai_tokenizer, published_settings
from dpt_jax.clip.files import Tensors, read_tensors
from dpt_jax.clip.layouts import common_names
from dpt_jax.clip.names import from_transformers
from dpt_jax.config import prompt_config
from dpt_jax.convert.published import prompts_from_published
from dpt_jax.losses import count, loss
from dpt_jax.model import PromptedCLIP
from dpt_jax.model.prompted_clip import Params
from dpt_jax.prompts.text import context_tokens, prompt_layout

Array = jax.Array


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
        self._layout = prompt_layout(names, tokenizer, length, fixed=words[length:])
        self._model = PromptedCLIP(self._sizes, self.prompted)

    def learned(self) -> int:
        """Return how many values are learned."""
        shapes = jax.eval_shape(self._model.init, jax.random.key(0))
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
        tensors = common_names(read_tensors(file), file).tensors
        params = {
            "clip": from_transformers(tensors, self._sizes, file),
            "prompts": prompts_from_published(modules),
        }
        frozen = jnp.ones((config.classes, self._sizes.embed_dim)) if texts is None else texts
        held = jnp.asarray(frozen) if config.held else None
        alpha, guided = self.config.loss.alpha, self.config.loss.guidance_epochs > 0

        def total(params: Params, images: Array, labels: Array) -> Array:
            own = self._model.encode_texts(params, self._layout, jnp.asarray(frozen), held=held)
            outputs, rows = self._model(params, images, own), jnp.ones(len(labels))
            counts = count(outputs.indices, labels, rows, self._model.cavpt_layers)
            return loss(config, outputs, labels, rows, counts, guided, alpha)

        return float(jax.jit(total)(params, images.transpose(0, 2, 3, 1), labels))
