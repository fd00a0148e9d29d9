"""Short forms of what tests ask of a PromptedCLIP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.packing import pack
from dpt_jax.model import init_prompts
from dpt_jax.prompts import PromptConfig
from dpt_jax.prompts.text import plain_layout, prompted_texts
from dpt_jax.training.losses import Rows, count, losses


def apply(model, clip_params, prompts, *args, method="__call__", **kwargs):
    variables = {"params": {"clip": clip_params, "prompts": prompts}}
    return model.apply(variables, *args, method=method, **kwargs)


def prompt_shapes(model):
    return jax.eval_shape(functools.partial(init_prompts, model), jax.random.key(0))


def packed_prompts(names, tokenizer, *args, **kwargs):
    return pack(prompted_texts(names, tokenizer, *args, **kwargs))


def frozen_features(model, clip_params, texts, tokenizer):
    """The features (C, E) of plain texts in frozen CLIP, not normalised."""
    frozen = model.clone(config=PromptConfig(classes=1))
    encode = jax.jit(functools.partial(apply, frozen, method="encode_text"))
    return encode(clip_params, {}, plain_layout(texts, tokenizer))


def total_loss(model, outputs, labels, guided=False, alpha=0.0, guidance=True):
    """The loss of these images as the whole batch."""
    weights = jnp.ones(len(labels))
    rows = Rows(labels, weights, *count(outputs.zero_shot.indices, labels, weights), guided)
    terms = losses(model.config, alpha, guidance)
    return sum(loss(outputs, rows) for loss in terms.values())


def all_outputs(predictor, images):
    """The pixels (N, size, size, 3) of images, and the outputs of the model, with attention."""
    batches, outputs = zip(*predictor.answers(images), strict=True)
    pixels = np.concatenate([batch["image"] for batch in batches])
    return pixels, jax.tree.map(lambda *x: np.concatenate(x), *outputs)
