"""The training step: one function per device, under pmap."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpt_jax import distributed
from dpt_jax.data.loader import Batch
from dpt_jax.losses import Counts, count, loss
from dpt_jax.model import PromptedCLIP
from dpt_jax.model.outputs import Plain, Texts
from dpt_jax.prompts import Prompts
from dpt_jax.training.averaging import after_step
from dpt_jax.training.schedule import Schedule, learning_rates
from dpt_jax.training.setup import Frozen

Scalar = Any  # an array without axes: of JAX within a step, of NumPy on the host
# What the loss is differentiated by: the prompts, and the class features (C, E) made from them,
# unless they depend on the image.
Trained = tuple[Prompts, jax.Array | None]


class Totals(NamedTuple):
    """Sums over the images of this epoch."""

    loss: Scalar
    hits: Scalar
    images: Scalar


class NotFinite(NamedTuple):
    """How many steps had a loss, gradient or prompt that is not finite; the first one, from 1."""

    steps: Scalar
    first: Scalar


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Scalar  # how many steps there have been
    prompts: Prompts
    opt_state: optax.OptState
    totals: Totals
    not_finite: NotFinite
    average: Prompts | None = None  # the sum over the epochs so far, where they are averaged


class StepConfig(NamedTuple):
    """The settings that a step is compiled for.

    microbatch: the images that a device takes at a time, 0 for all that it has.
    skip: whether training goes on after a step that is not finite. Such a step
    changes no prompt in either case. guided: whether any epoch has guidance; the
    schedule says which.
    """

    alpha: float
    microbatch: int = 0
    skip: bool = False
    guided: bool = True


class Sums(NamedTuple):
    """What the images of a device, or of all devices, add to the loss and to its gradient."""

    loss: Scalar
    hits: Scalar
    gradient: Prompts


# (trained, images and their labels, what plain CLIP sees in them) -> (loss, hits), gradient
Differentiate = Callable[[Trained, Batch, Plain], tuple[tuple[Scalar, Scalar], Trained]]


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def make_step(
    model: PromptedCLIP,
    optimizer: optax.GradientTransformationExtraArgs,
    config: StepConfig,
    on: tuple[jax.Device, ...] | None = None,
) -> Callable[[TrainState, Frozen, Batch, Schedule], TrainState]:
    """Return the training step, pmapped over this host's devices.

    Every argument has a leading device axis; the batch is what loader.shard
    makes, and the schedule is an argument so that runs of other lengths need no
    other program. Loss, gradient and totals are global sums over global counts,
    so the result depends neither on how many devices and hosts share the batch,
    nor on the parts in which a device takes its images. on: the devices, None
    for the local ones.
    """

    def step(state: TrainState, frozen: Frozen, batch: Batch, schedule: Schedule) -> TrainState:
        epoch = state.step // schedule.steps_per_epoch
        guided = config.guided and epoch < schedule.guidance_epochs
        own, counts = batch_gradient(model, config, state, frozen, batch, guided)
        sums = all_reduce(own)
        updates, opt_state = optimizer.update(
            sums.gradient,
            state.opt_state,
            state.prompts,
            rates=learning_rates(schedule, state.step),
        )
        updated = state._replace(
            step=state.step + 1,
            prompts=optax.apply_updates(state.prompts, updates),
            opt_state=opt_state,
            totals=add_to_totals(state, schedule, sums, counts),
        )
        return averaged(
            leave_out_if_not_finite(state, updated, sums, config.skip, schedule), schedule
        )

    return jax.pmap(step, axis_name=distributed.AXIS, devices=on, donate_argnums=0)


def batch_gradient(
    model: PromptedCLIP,
    config: StepConfig,
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    guided: jax.Array | bool,
) -> tuple[Sums, Counts]:
    """Return this device's part of loss and gradient, and the counts of all devices.

    guided: whether this step has guidance, () bool; False where no step has.
    """

    def params(prompts: Prompts) -> dict[str, Any]:
        return {"clip": frozen.clip, "prompts": prompts}

    def encode(prompts: Prompts) -> tuple[jax.Array | None, Texts]:
        texts = model.encode_texts(
            params(prompts), frozen.layout, frozen.texts, distributed.AXIS, frozen.held
        )
        return texts.learned, texts

    # Texts are encoded once a step, however many parts the batch is taken in: `pull` takes the
    # gradients of all parts back into the text prompt together.
    learned, pull, texts = jax.vjp(encode, state.prompts, has_aux=True)
    # Attention is for pictures only, and the parts of a batch would carry it along.
    plain = model.plain(params(state.prompts), batch["image"], texts)._replace(attention=None)
    counts = jax.lax.psum(
        count(plain.indices, batch["label"], batch["weight"], model.cavpt_layers), distributed.AXIS
    )

    def objective(trained: Trained, part: Batch, plain: Plain) -> tuple[Scalar, Scalar]:
        prompts, learned = trained
        outputs = model(params(prompts), part["image"], texts._replace(learned=learned), plain)
        labels, weight = part["label"], part["weight"]
        # The counts are global. So this is the share of these images in the global loss, and the
        # gradients of all shares add up to its gradient.
        share = loss(model.prompts, outputs, labels, weight, counts, guided, config.alpha)
        return share, ((outputs.logits.argmax(-1) == labels) * weight).sum()

    differentiate = jax.value_and_grad(objective, has_aux=True)
    (share, hits), (gradient, to_texts) = accumulate(
        differentiate, (state.prompts, learned), batch, plain, config.microbatch
    )
    return Sums(share, hits, jax.tree.map(jnp.add, gradient, pull(to_texts)[0])), counts


def accumulate(
    differentiate: Differentiate, trained: Trained, batch: Batch, plain: Plain, microbatch: int
) -> tuple[tuple[Scalar, Scalar], Trained]:
    """Return the sums over the whole batch, computed for `microbatch` images at a time."""
    weight = batch["weight"]
    if microbatch in (0, len(weight)):
        return differentiate(trained, batch, plain)
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatch, *x.shape[1:]), (batch, plain))
    nothing = jax.tree.map(jnp.zeros_like, ((weight[0], weight[0]), trained))

    def add(sums: Any, part: tuple[Batch, Plain]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, differentiate(trained, *part)), None

    return jax.lax.scan(add, nothing, parts)[0]


def all_reduce(own: Sums) -> Sums:
    """Return the sums over the devices of all hosts, which every device then has."""
    return jax.lax.psum(own, distributed.AXIS)


def add_to_totals(state: TrainState, schedule: Schedule, sums: Sums, counts: Counts) -> Totals:
    """Return the totals with this step's images, from zero where it begins an epoch."""
    before = _totals_before(state, schedule)
    # The loss is a mean over images; the totals hold sums.
    return Totals(
        before.loss + sums.loss * counts.images,
        before.hits + sums.hits,
        before.images + counts.images,
    )


def leave_out_if_not_finite(
    state: TrainState, updated: TrainState, sums: Sums, skip: bool, schedule: Schedule
) -> TrainState:
    """Return `updated`, or `state` with the step counted where something is not finite.

    That is the loss, the gradient, or a prompt that the update has made too large for float32.

    After such a step nothing changes any more, unless `skip` allows it: the
    prompts stay those of the last good step until the loop looks.
    """
    # The same on all devices, since loss and gradient are sums over them.
    leaves = jax.tree.leaves((sums.loss, sums.gradient, updated.prompts))
    finite = jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()
    before = state.not_finite
    first_one = ~finite & (before.steps == 0)
    not_finite = NotFinite(
        before.steps + ~finite, jnp.where(first_one, state.step + 1, before.first)
    )
    taken = finite & (skip | (before.steps == 0))
    unchanged = state._replace(step=updated.step, totals=_totals_before(state, schedule))
    kept = jax.tree.map(lambda new, old: jnp.where(taken, new, old), updated, unchanged)
    return kept._replace(not_finite=not_finite)


def averaged(state: TrainState, schedule: Schedule) -> TrainState:
    """Return the state with the prompts in its average, see training.averaging."""
    if state.average is None or schedule.average is None:
        return state
    prompts, average = after_step(
        state.step, schedule.steps_per_epoch, schedule.average, state.prompts, state.average
    )
    return state._replace(prompts=prompts, average=average)


def _totals_before(state: TrainState, schedule: Schedule) -> Totals:
    begins = state.step % schedule.steps_per_epoch == 0
    return jax.tree.map(lambda x: jnp.where(begins, 0.0, x), state.totals)


def new_state(
    prompts: Prompts, optimizer: optax.GradientTransformation, average: bool = False
) -> TrainState:
    """Return the state, on the host, of a training that begins with these prompts.

    average: whether it averages them.
    """
    zero, none = np.float32(0), np.int32(0)
    return TrainState(
        none,
        prompts,
        optimizer.init(prompts),
        Totals(zero, zero, zero),
        NotFinite(none, none),
        jax.tree.map(np.zeros_like, prompts) if average else None,
    )
