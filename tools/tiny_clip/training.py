"""The training of the tiny CLIP: the model's sizes, the loss, one step, and the loop.

Shapes: B batch, S side of an image in pixels, T tokens of a caption after start-of-text, E the
joint embedding.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.model import CLIP, normalize
from dpt_jax.clip.packing import PackedTexts
from tools.tiny_clip.augment import augment
from tools.tiny_clip.corpus import IMAGE_SIZE, Batch, Corpus, batches

MAX_LOGIT_SCALE = 100.0
# Most of the training takes a random half of each image's patches. That halves the time, and keeps
# the tower from leaning on few of them. The last part of the training takes all patches.
KEPT_PATCHES, WHOLE_IMAGE_SHARE = 0.5, 0.15
EPOCHS_BETWEEN_WRITES = 10

Params = Any  # the parameter tree of dpt_jax.clip.model.CLIP
Write = Callable[[Params, int, float], None]  # (parameters, epoch, mean loss of the epoch)


class Recipe(NamedTuple):
    """What the command line sets."""

    epochs: int = 110
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    seed: int = 0


class State(NamedTuple):
    """What a step changes."""

    params: Params
    optimizer: optax.OptState


Step = Callable[[State, jax.Array, Batch, int], tuple[State, jax.Array]]


def tiny_config(vocab_size: int) -> CLIPConfig:
    """Return the sizes of the tiny CLIP.  Heads are 64 wide, as in every CLIP."""
    vision = TransformerConfig(width=128, layers=4, heads=2, mlp_width=512)
    text = TransformerConfig(width=128, layers=3, heads=2, mlp_width=512)
    return CLIPConfig(
        128, IMAGE_SIZE, patch_size=8, vision=vision, text=text, vocab_size=vocab_size
    )


def train(corpus: Corpus, config: CLIPConfig, start: int, recipe: Recipe, write: Write) -> None:
    """Train, calling `write` every few epochs and at the end.  start: the start-of-text token."""
    steps_per_epoch = round(len(corpus.images) / recipe.batch_size)
    steps = recipe.epochs * steps_per_epoch
    optimizer = make_optimizer(recipe.learning_rate, steps)
    step = make_step(corpus, config, start, optimizer)
    init_key, step_key = jax.random.split(jax.random.key(recipe.seed))
    params = init_params(config, init_key, caption_layout(corpus.tokens[:1, 0], start))
    state = State(params, optimizer.init(params))
    generator = np.random.default_rng(recipe.seed)
    began, number = time.perf_counter(), 0
    for epoch in range(1, recipe.epochs + 1):
        losses = []
        whole = epoch > recipe.epochs * (1 - WHOLE_IMAGE_SHARE)
        kept = config.grid**2 if whole else round(config.grid**2 * KEPT_PATCHES)
        for batch in batches(corpus, recipe.batch_size, generator):
            state, loss = step(state, jax.random.fold_in(step_key, number), batch, kept)
            losses.append(loss)
            number += 1
        mean = float(np.mean(jax.device_get(losses)))
        seconds = time.perf_counter() - began
        scale = float(jnp.exp(state.params["logit_scale"]))
        print(
            f"epoch {epoch}/{recipe.epochs}  loss {mean:.3f}  scale {scale:.1f}  "
            f"{number * recipe.batch_size / seconds:.0f} images/s  "
            f"ETA {seconds / number * (steps - number):.0f} s",
            flush=True,
        )
        if epoch % EPOCHS_BETWEEN_WRITES == 0 or epoch == recipe.epochs:
            write(jax.device_get(state.params), epoch, mean)


def make_step(
    corpus: Corpus, config: CLIPConfig, start: int, optimizer: optax.GradientTransformation
) -> Step:
    """Return the compiled step: (state, key, batch, patches kept of an image) -> (state, loss)."""
    model = CLIP(config, jnp.bfloat16, remat="none")
    images, tokens, fits = map(jnp.asarray, (corpus.images, corpus.tokens, corpus.fits))

    def features(
        clip: CLIP, key: jax.Array, pixels: jax.Array, captions: jax.Array, kept: int
    ) -> tuple[jax.Array, jax.Array]:
        layout = caption_layout(captions, start)
        return image_features(clip, key, pixels, kept), clip.text(layout)

    def loss_of(params: Params, key: jax.Array, batch: Batch, kept: int) -> jax.Array:
        augment_key, patch_key = jax.random.split(key)
        pixels = augment(augment_key, images[batch.image])
        captions = tokens[batch.template, batch.phrase]
        outputs: Any = model.apply(
            {"params": params}, patch_key, pixels, captions, kept, method=features
        )
        image, text = outputs
        logits = jnp.exp(params["logit_scale"]) * normalize(image) @ normalize(text).T
        return contrastive_loss(logits, fits[batch.image][:, batch.phrase])

    @functools.partial(jax.jit, static_argnames="kept")
    def step(state: State, key: jax.Array, batch: Batch, kept: int) -> tuple[State, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(state.params, key, batch, kept)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        scale = jnp.clip(params["logit_scale"], 0.0, np.log(MAX_LOGIT_SCALE))
        return State({**params, "logit_scale": scale}, optimizer_state), loss

    return step


def make_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Return AdamW with warm-up and cosine; vectors and scalars do not decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), steps)

    def decays(params: Params) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=0.1, mask=decays),
    )


def init_params(config: CLIPConfig, key: jax.Array, layout: PackedTexts) -> Params:
    """Return random parameters, float32.  layout: any, for the shapes alone."""
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    model = CLIP(config, jnp.bfloat16)
    return jax.jit(model.init)(key, pixels, layout)["params"]


def caption_layout(captions: jax.Array | np.ndarray, start: int) -> PackedTexts:
    """Return the layout of captions (B, T) that all follow one start-of-text token.

    A caption has a row of its own, where `packing.pack` packs several into one: the
    shapes then depend on B and T alone, and one compiled step serves every batch. The captions are
    padded with end-of-text; what follows the first end has no effect, since attention is causal.
    """
    captions = jnp.asarray(captions)
    count, length = captions.shape
    rows = jnp.broadcast_to(jnp.arange(count)[:, None], captions.shape)
    places = jnp.broadcast_to(jnp.arange(1, length + 1), captions.shape)
    return PackedTexts(
        prefix_tokens=jnp.array([start]),
        prefix_context=jnp.array([-1]),
        tokens=captions,
        context=jnp.full_like(captions, -1),
        segment_ids=rows,
        position_ids=places,
        # End-of-text is the largest token there is, so the first of the largest is the first end.
        eot_positions=jnp.argmax(captions, axis=1)[:, None],
        eot_index=jnp.arange(count),
    )


def image_features(clip: CLIP, key: jax.Array, pixels: jax.Array, kept: int) -> jax.Array:
    """Return features (B, E) from the class token and `kept` random patches of each image.

    pixels: normalised images (B, S, S, 3).
    """
    tower, last = clip.vision, clip.config.vision.layers - 1
    x = tower.embed(pixels)
    order = jnp.argsort(jax.random.uniform(key, (len(x), x.shape[1] - 1)), axis=1)[:, :kept]
    patches = jnp.take_along_axis(x[:, 1:], order[..., None], axis=1)
    x = jnp.concatenate([x[:, :1], patches], axis=1)
    x = tower.blocks(x, 0, last)
    # Only the class token leaves the last block.
    x = tower.transformer.block(last)(x, query=jnp.zeros((1, 1), jnp.int32))
    return tower.ln_post(x[:, 0]) @ tower.projection


def contrastive_loss(logits: jax.Array, fits: jax.Array) -> jax.Array:
    """Return the symmetric InfoNCE of logits (B, B), images by captions, pairs on the diagonal.

    fits: (B, B), whether a caption is true of an image. A true caption that
    belongs to another image is neither a positive nor a negative: it is left out.
    """
    left_out = fits & ~jnp.eye(len(logits), dtype=bool)
    logits = jnp.where(left_out, -jnp.inf, logits)
    pair = jnp.diagonal(logits)
    losses = [jax.nn.logsumexp(logits, axis=axis) - pair for axis in (0, 1)]
    return (losses[0].mean() + losses[1].mean()) / 2
