"""The training step: one function per device, under pmap."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params, PyTree
from dpt_jax.data.loader import Batch
from dpt_jax.model import PromptedCLIP, Texts, apply
from dpt_jax.prompts import Prompts
from dpt_jax.training.losses import Rows, count, losses
from dpt_jax.training.optimizer import (
    Scalar,
    Schedule,
    average_epochs,
    descend,
    learning_rates,
    make_optimizer,
)


class StepConfig(NamedTuple):
    """The settings that a step is compiled for."""

    alpha: float  # weight of the auxiliary loss
    microbatch: int = 0  # images that a device takes at a time, 0 for all that it has
    # Whether training continues after a non-finite step, which changes nothing in either case.
    skip: bool = False
    guidance: bool = True  # whether any epoch has guidance; the schedule says which
    optimizer: optax.GradientTransformation = make_optimizer()


# Sums over images: their number, how many are classified right, and each term of the loss.
Totals = dict[str, Scalar]


class NotFinite(NamedTuple):
    """The number of steps with a non-finite loss, gradient or prompt; the first, from 1."""

    steps: Scalar
    first: Scalar


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Scalar  # number of steps so far
    prompts: Prompts
    opt_state: optax.OptState
    totals: Totals  # of this epoch
    not_finite: NotFinite
    average: Prompts | None = None  # weighted sum over the epochs so far, see `average_epochs`


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def make_step(
    model: PromptedCLIP, config: StepConfig, devices: tuple[jax.Device, ...] | None = None
) -> Callable[[TrainState, Params, Texts, Batch, Schedule], TrainState]:
    """Return the training step, pmapped over this host's devices.

    Every argument has a leading device axis; the batch is from `loader.shard`. Loss, gradient and
    totals are global sums over global counts, so the result does not depend on how the batch is
    divided among hosts, devices and microbatches.
    devices: None for the local ones.
    """

    def step(
        state: TrainState, clip: Params, classes: Texts, batch: Batch, schedule: Schedule
    ) -> TrainState:
        epoch = state.step // schedule.steps_per_epoch
        guided = config.guidance and epoch < schedule.guidance_epochs
        key = None
        if model.config.weights.dropout:
            key = jax.random.fold_in(jax.random.key(schedule.seed), state.step)
        gradient, sums = accumulate_gradients(
            model, config, state.prompts, clip, classes, batch, guided, key
        )
        gradient, sums = jax.lax.psum((gradient, sums), distributed.AXIS)
        rates = learning_rates(schedule, state.step)
        prompts, opt_state = descend(
            config.optimizer, gradient, state.opt_state, state.prompts, rates
        )
        begins = state.step % schedule.steps_per_epoch == 0
        before = jax.tree.map(lambda x: jnp.where(begins, 0.0, x), state.totals)
        step, totals = state.step + 1, jax.tree.map(jnp.add, before, sums)

        # A non-finite step is only counted. Unless such steps are skipped, the ones after it change
        # nothing either: the last good prompts stay until the loop checks.
        finite = jax.tree.reduce(
            jnp.logical_and,
            jax.tree.map(lambda x: jnp.isfinite(x).all(), (sums, gradient, prompts)),
        )
        bad = state.not_finite
        first = jnp.where(~finite & (bad.steps == 0), step, bad.first)
        use = finite & (config.skip | (bad.steps == 0))
        prompts, opt_state, totals = jax.tree.map(
            lambda new, old: jnp.where(use, new, old),
            (prompts, opt_state, totals),
            (state.prompts, state.opt_state, before),
        )
        average = state.average
        if schedule.average is not None:
            prompts, average = average_epochs(schedule, step, prompts, average)
        not_finite = NotFinite(bad.steps + ~finite, first)
        return TrainState(step, prompts, opt_state, totals, not_finite, average)

    return jax.pmap(step, axis_name=distributed.AXIS, devices=devices, donate_argnums=0)


def accumulate_gradients(
    model: PromptedCLIP,
    config: StepConfig,
    prompts: Prompts,
    clip: Params,
    classes: Texts,
    batch: Batch,
    guided: jax.Array | bool,
    key: jax.Array | None = None,
) -> tuple[Prompts, Totals]:
    """Return this device's part of the gradient, and its sums.

    Args:
      guided: whether this step has guidance, () bool.
      key: random key of dropout, None for none. An image's masks depend on its index in the
        dataset, not on its device or microbatch.
    """
    terms = losses(model.config, config.alpha, config.guidance)
    own = functools.partial(apply, model, clip)

    def encode(prompts: Prompts) -> tuple[jax.Array, Texts]:
        text_key = None if key is None else jax.random.fold_in(key, 0)
        texts = own(prompts, classes, distributed.AXIS, text_key, method="texts")
        return texts.learned, texts

    # Texts are encoded once per step: `pull` backpropagates the gradient, summed over microbatches,
    # into the text prompt.
    learned, pull, texts = jax.vjp(encode, prompts, has_aux=True)
    zero_shot = own(prompts, batch["image"], texts, method="zero_shot")
    # Only pictures need it, and the scan over microbatches would carry it.
    zero_shot = zero_shot._replace(attention=None)
    counts: tuple[jax.Array, jax.Array] = jax.lax.psum(
        count(zero_shot.indices, batch["label"], batch["weight"]), distributed.AXIS
    )

    def objective(trained: tuple[Prompts, jax.Array], part: PyTree) -> tuple[jax.Array, Totals]:
        (prompts, learned), (batch, zero_shot) = trained, part
        keys = None
        if key is not None:
            of_images = jax.random.fold_in(key, 1)
            keys = jax.vmap(lambda index: jax.random.fold_in(of_images, index))(batch["index"])
        texts_now = texts._replace(learned=learned)
        outputs = own(prompts, batch["image"], texts_now, zero_shot, keys)
        rows = Rows(batch["label"], batch["weight"], *counts, guided)
        # The counts are global, so these are shares of the global losses, and the gradients of all
        # shares add up to the global gradient.
        values = {f"loss_{name}": loss(outputs, rows) for name, loss in terms.items()}
        hits = ((outputs.logits.argmax(-1) == rows.labels) * rows.weights).sum()
        return jnp.asarray(sum(values.values())), {"hits": hits, **values}

    differentiate = functools.partial(jax.grad(objective, has_aux=True), (prompts, learned))
    parts, size = (batch, zero_shot), config.microbatch
    if size in (0, len(batch["weight"])):
        (gradient, to_learned), sums = differentiate(parts)
    else:
        parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), parts)
        shapes = jax.eval_shape(differentiate, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(sums: PyTree, part: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, sums, differentiate(part)), None

        ((gradient, to_learned), sums), _ = jax.lax.scan(add, zeros, parts)
    gradient = jax.tree.map(jnp.add, gradient, pull(to_learned)[0])
    # The losses are means over images; the totals are sums.
    scaled = {
        name: value * counts[0] if name.startswith("loss_") else value
        for name, value in sums.items()
    }
    return gradient, {**scaled, "images": batch["weight"].sum()}
