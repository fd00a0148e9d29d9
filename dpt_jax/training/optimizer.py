"""SGD as the published method uses it: one group for the visual side, one for the text prompt."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARMUP_LR = 1e-5
TEXT_WARMUP_EPOCHS = 1
Schedule = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates at their highest, epochs of warm-up of the visual side, length of the cosine."""

    visual_lr: float
    text_lr: float
    warmup_epochs: int
    schedule_epochs: int
    steps_per_epoch: int


def learning_rate(
    base: float, warmup_epochs: int, schedule_epochs: int, steps_per_epoch: int
) -> Schedule:
    """step -> learning rate, constant within an epoch e.

    1e-5 while e < w, then base · (1 + cos(π (e − w) / E_t)) / 2: the cosine
    starts at the end of warm-up and does not reach zero.
    """

    def schedule(step: Any) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        cosine = base * (1 + jnp.cos(jnp.pi * (epoch - warmup_epochs) / schedule_epochs)) / 2
        return jnp.where(epoch < warmup_epochs, WARMUP_LR, cosine)

    return schedule


def learning_rates(config: OptimizerConfig) -> dict[str, Schedule]:
    """The schedule of each group."""
    return {
        "visual": learning_rate(
            config.visual_lr, config.warmup_epochs, config.schedule_epochs, config.steps_per_epoch
        ),
        "text": learning_rate(
            config.text_lr, TEXT_WARMUP_EPOCHS, config.schedule_epochs, config.steps_per_epoch
        ),
    }


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Momentum SGD, weight decay added to the gradient before momentum, on a tree of prompts.

    The visual prompt and CAVPT are in the group "visual", the rest in "text".
    """
    groups = {
        name: optax.chain(
            optax.add_decayed_weights(WEIGHT_DECAY),
            optax.trace(MOMENTUM),
            optax.scale_by_learning_rate(schedule),
        )
        for name, schedule in learning_rates(config).items()
    }

    def labels(prompts: Any) -> Any:
        return {part: "text" if part == "text" else "visual" for part in prompts}

    return optax.partition(groups, labels)
