"""SGD as the published methods use it: one group for the visual side, one for the text prompt."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dpt_jax.prompts import Prompts

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARMUP_LR = 1e-5
TEXT_WARMUP_EPOCHS = 1
TEXT_PARTS = ("text", "meta_net")  # of the prompts; the others are of the visual side
Schedule = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Highest learning rates, warm-up epochs of the visual side, and length of the cosine."""

    visual_lr: float
    text_lr: float
    warmup_epochs: int
    schedule_epochs: int
    steps_per_epoch: int


def learning_rate(
    base: float, warmup_epochs: int, schedule_epochs: int, steps_per_epoch: int
) -> Schedule:
    """Return step -> learning rate, which is constant within an epoch e.

    1e-5 while e < w, then base · (1 + cos(π (e − w) / E_t)) / 2: the cosine
    starts at the end of warm-up and does not reach zero.
    """

    def schedule(step: Any) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        cosine = base * (1 + jnp.cos(jnp.pi * (epoch - warmup_epochs) / schedule_epochs)) / 2
        return jnp.where(epoch < warmup_epochs, WARMUP_LR, cosine)

    return schedule


def learning_rates(config: OptimizerConfig) -> dict[str, Schedule]:
    """Return the schedule of each group."""
    epochs, steps = config.schedule_epochs, config.steps_per_epoch
    return {
        "visual": learning_rate(config.visual_lr, config.warmup_epochs, epochs, steps),
        "text": learning_rate(config.text_lr, TEXT_WARMUP_EPOCHS, epochs, steps),
    }


@functools.lru_cache  # what is made of the same numbers is the same, also to `make_step`
def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Return momentum SGD on prompts, with weight decay added to the gradient before momentum.

    `update` takes the number of the step, from 0, as `step`: the learning rate
    follows the steps of the run, also where some of them were left out.
    """
    return optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.trace(MOMENTUM),
        _scale_by_step(learning_rates(config)),
    )


def _scale_by_step(rates: dict[str, Schedule]) -> optax.GradientTransformationExtraArgs:
    """Multiply by minus the rate of each part: those of the text, or the visual one."""

    def update(
        updates: Prompts, state: optax.EmptyState, prompts: Any = None, *, step: Any, **_: Any
    ) -> tuple[Prompts, optax.EmptyState]:
        factors = {group: -rate(step) for group, rate in rates.items()}

        def scale(part: str) -> Any:
            factor = factors["text" if part in TEXT_PARTS else "visual"]
            return jax.tree.map(lambda x: factor * x, updates[part])

        return {part: scale(part) for part in updates}, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def state_to_save(opt_state: optax.OptState) -> Prompts:
    """Return the momentum, a tree like the prompts: all that the optimizer has to remember.

    What is saved names no class of Optax, so that another version of it, whose
    states are other classes, goes on with it.
    """
    return optax.tree.get(opt_state, "trace")


def state_from_saved(
    optimizer: optax.GradientTransformation, prompts: Prompts, momentum: Prompts
) -> optax.OptState:
    """Return the state of an optimizer whose `state_to_save` was `momentum`."""
    return optax.tree.set(optimizer.init(prompts), trace=momentum)
