"""The average of a run's prompts over its epochs, which stands in their place at the end.

θ̄ = Σ w_e θ_e over the epochs e = 1 … N, θ_e as the prompts stand after the last step of epoch e,
and w_e = exp(−(e − μ)² / 2σ²), normalised to the sum 1. The training itself does not see it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.prompts import Prompts

# One weight an epoch, in a step as an array; none where nothing is averaged.
Weights = tuple[float, ...] | np.ndarray | jax.Array


def epoch_weights(epochs: int, mean: float, deviation: float) -> tuple[float, ...]:
    """Return w of so many epochs; none for a deviation of 0, which turns the average off."""
    if not deviation:
        return ()
    away = -((np.arange(1, epochs + 1) - mean) ** 2) / (2 * deviation**2)
    # The largest is taken as 1 first, so that a mean far from all epochs leaves some weight.
    weights = np.exp(away - away.max())
    return tuple((weights / weights.sum()).tolist())


def after_step(
    step: Any, steps_per_epoch: int, weights: Weights, prompts: Prompts, average: Prompts
) -> tuple[Prompts, Prompts]:
    """Return the prompts to go on with after `step` (from 1), and the sum over the epochs so far.

    The prompts are those of the step, and after the last one the average.
    """
    epoch, more = step // steps_per_epoch, step % steps_per_epoch
    weight = jnp.where(more == 0, jnp.asarray(weights, jnp.float32)[epoch - 1], 0.0)
    average = jax.tree.map(lambda sum, own: sum + weight * own, average, prompts)
    last = step == len(weights) * steps_per_epoch
    return jax.tree.map(lambda sum, own: jnp.where(last, sum, own), average, prompts), average
