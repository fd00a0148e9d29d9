"""The training step: one per-device function under pmap."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dpt_jax.inference.experiment import Frozen
from dpt_jax.losses import count, loss
from dpt_jax.model import Plain, PromptedCLIP, Texts
from dpt_jax.runtime import devices


class TrainState(NamedTuple):
    """Everything a step changes.

    totals: this epoch's sums of loss·rows, hits and rows. bad: (2,) int32, how
    many steps had a loss or gradient that is not finite, and the number of the
    first of them, from 1.
    """

    step: Any
    prompts: Any
    opt_state: Any
    totals: Any
    bad: Any


class StepConfig(NamedTuple):
    """What a step goes by.

    microbatch: the rows that a device takes at a time, 0 for all of its rows.
    skip: whether steps go on behind one that is not finite, which itself never
    changes anything.
    """

    alpha: float
    guidance_epochs: int
    steps_per_epoch: int
    microbatch: int = 0
    skip: bool = False


def make_step(
    model: PromptedCLIP,
    optimizer: optax.GradientTransformation,
    settings: StepConfig,
    on: Sequence[jax.Device] | None = None,
) -> Callable[[TrainState, Frozen, Any], TrainState]:
    """The training step, pmapped over the local devices.

    Every argument has a leading device axis; the batch is what loader.shard
    makes. Loss, gradient and totals are global sums over global counts, so the
    result depends neither on how many devices and hosts share the batch, nor on
    the parts in which a device takes its rows. on: the devices, None for the local ones.
    """

    def step(state: TrainState, frozen: Frozen, batch: Any) -> TrainState:
        guided = state.step // settings.steps_per_epoch < settings.guidance_epochs
        rows = batch["weight"]

        def params(prompts: Any) -> Any:
            return {"clip": frozen.clip, "prompts": prompts}

        def encode(prompts: Any) -> tuple[jax.Array, Texts]:
            texts = model.encode_texts(params(prompts), frozen.layout, frozen.texts, devices.AXIS)
            return texts.learned, texts

        # Encoded once a step, whatever the parts: `pull` takes their gradients back into the text prompt together.
        learned, pull, texts = jax.vjp(encode, state.prompts, has_aux=True)
        # Without what is for pictures alone, which the parts of a batch would carry along.
        plain = model.plain(params(state.prompts), batch["image"], texts)._replace(attention=None)
        counts = jax.lax.psum(
            count(plain.indices, batch["label"], rows, model.cavpt_layers), devices.AXIS
        )

        def objective(
            trained: Any, part: dict[str, Any], plain: Plain
        ) -> tuple[jax.Array, jax.Array]:
            prompts, learned = trained
            outputs = model(params(prompts), part["image"], texts._replace(learned=learned), plain)
            # The counts are global, so only these rows' share is differentiated, and the gradients, summed over
            # parts and devices, are those of the global loss.
            share = loss(
                model.prompts,
                outputs,
                part["label"],
                part["weight"],
                counts,
                guided,
                settings.alpha,
            )
            return share, ((outputs.logits.argmax(-1) == part["label"]) * part["weight"]).sum()

        differentiate = jax.value_and_grad(objective, has_aux=True)
        trained = (state.prompts, learned)
        if settings.microbatch in (0, len(rows)):
            (share, hits), (gradient, to_texts) = differentiate(trained, batch, plain)
        else:
            parts = jax.tree.map(
                lambda x: x.reshape(-1, settings.microbatch, *x.shape[1:]), (batch, plain)
            )
            none = jax.tree.map(jnp.zeros_like, ((rows[0], rows[0]), trained))

            def add(sums: Any, part: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, sums, differentiate(trained, *part)), None

            ((share, hits), (gradient, to_texts)), _ = jax.lax.scan(add, none, parts)
        gradient = jax.tree.map(jnp.add, gradient, pull(to_texts)[0])
        total, hits, gradient = jax.lax.psum((share, hits, gradient), devices.AXIS)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.prompts)
        totals = jnp.where(state.step % settings.steps_per_epoch == 0, 0.0, state.totals)
        new = (
            optax.apply_updates(state.prompts, updates),
            opt_state,
            jnp.stack([total * counts.images, hits, counts.images]),
        )
        # The same on all devices, since loss and gradient are sums over them.
        finite = jnp.isfinite(total) & jnp.all(
            jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(gradient)])
        )
        count_bad, first = (
            state.bad[0] + ~finite,
            jnp.where(finite | (state.bad[0] > 0), state.bad[1], state.step + 1),
        )
        taken = finite & (settings.skip | (state.bad[0] == 0))
        old = state.prompts, state.opt_state, jnp.zeros_like(totals)
        prompts, opt_state, added = jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)
        return TrainState(
            state.step + 1, prompts, opt_state, totals + added, jnp.stack([count_bad, first])
        )

    return jax.pmap(step, axis_name=devices.AXIS, devices=on, donate_argnums=0)
