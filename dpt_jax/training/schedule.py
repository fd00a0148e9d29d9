"""How long a run's phases are, and its learning rates: numbers that a compiled step takes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.training.averaging import Weights

WARMUP_LR = 1e-5
TEXT_WARMUP_EPOCHS = 1


class Schedule(NamedTuple):
    """The numbers by which the runs of a sweep differ, and which no program is compiled for.

    visual_lr, text_lr: the highest learning rates. warmup_epochs: of the visual side.
    schedule_epochs: length of the cosine. guidance_epochs: those of the guidance loss. average: the
    weight of each epoch in the average that the prompts end with, None without.
    """

    visual_lr: Any
    text_lr: Any
    warmup_epochs: Any
    schedule_epochs: Any
    steps_per_epoch: Any
    guidance_epochs: Any = 0
    average: Weights | None = None

    def as_arrays(self) -> "Schedule":
        """Return the numbers as a step takes them: float32 and int32, average (epochs,) float32."""
        return Schedule(
            np.float32(self.visual_lr),
            np.float32(self.text_lr),
            np.int32(self.warmup_epochs),
            np.int32(self.schedule_epochs),
            np.int32(self.steps_per_epoch),
            np.int32(self.guidance_epochs),
            None if self.average is None else np.asarray(self.average, np.float32),
        )


def learning_rates(schedule: Schedule, step: Any) -> dict[str, jax.Array]:
    """Return the learning rate of the visual side and of the text prompt at a step, from 0."""
    return {
        "visual": _rate(schedule, schedule.visual_lr, schedule.warmup_epochs, step),
        "text": _rate(schedule, schedule.text_lr, TEXT_WARMUP_EPOCHS, step),
    }


def _rate(schedule: Schedule, base: Any, warmup_epochs: Any, step: Any) -> jax.Array:
    """Return the rate at a step, which is constant within an epoch e.

    1e-5 while e < w, then base · (1 + cos(π (e − w) / E_t)) / 2: the cosine
    starts at the end of warm-up and does not reach zero.
    """
    epoch = jnp.asarray(step) // schedule.steps_per_epoch
    cosine = base * (1 + jnp.cos((epoch - warmup_epochs) * (jnp.pi / schedule.schedule_epochs))) / 2
    return jnp.where(epoch < warmup_epochs, WARMUP_LR, cosine)
