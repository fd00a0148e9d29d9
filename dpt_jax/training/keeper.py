"""When a run is saved, and how it ends before its last step."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.logging import say
from dpt_jax.runtime import failures
from dpt_jax.training.checkpoints import Checkpoints
from dpt_jax.training.optimizer import state_to_save
from dpt_jax.training.plan import Plan
from dpt_jax.training.signals import Stopped
from dpt_jax.training.step import TrainState

# With several hosts a look at host 0's clock is a message, so they look every so many steps.
STEPS_BETWEEN_CLOCKS = 20


class Keeper:
    """Saves a run when it is due, and stops it after a step that is not finite."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        before_saving: Sequence[Callable[[], None]],
        about: dict[str, Any],
        plan: Plan,
        config: ConfigDict,
        images_of: Callable[[int], list[str]],
    ) -> None:
        """Keep what every save needs.

        before_saving: called on each save, to raise where there must be none. about: the metadata
        of the run. config: config.checkpoint. images_of: the paths of a step's images.
        """
        self._checkpoints, self._about, self._plan = checkpoints, about, plan
        self._before_saving = before_saving
        self._every_steps, self._every_minutes = config.every_steps, config.every_minutes
        self._images_of = images_of
        self._saved = time.monotonic()

    def due(self, step: int) -> bool:
        """Return whether to save after this step: by steps, by the clock, and at the end.

        All hosts ask together, and the clock is that of host 0.
        """
        if step % self._every_steps == 0 or step == self._plan.total:
            return True
        if not self._every_minutes or not self.may_save(step):
            return False
        return distributed.first_says(time.monotonic() - self._saved > 60 * self._every_minutes)

    def may_save(self, step: int) -> bool:
        """Return whether `due` can say so of this step; of several hosts at some steps only."""
        by_steps = step % self._every_steps == 0 or step == self._plan.total
        return by_steps or jax.process_count() == 1 or step % STEPS_BETWEEN_CLOCKS == 0

    def save(self, step: int, replicated: TrainState) -> None:
        """Begin to save the state after `step`.  Raise UserError as `check` does."""
        self.check(replicated)
        state: TrainState = distributed.to_host(replicated)
        epoch = step // self._plan.steps_per_epoch
        about = {**self._about, "epoch": epoch, "bad": [int(x) for x in state.not_finite]}
        training = {
            "momentum": state_to_save(state.opt_state),
            "totals": np.asarray(state.totals),
        }
        if state.average is not None:
            training["average"] = state.average
        with failures.fatal():
            for call in self._before_saving:
                call()
            self._checkpoints.save(step, state.prompts, about, training)
        self._saved = time.monotonic()

    def stop(self, step: int, replicated: TrainState) -> NoReturn:
        """Save the state after `step` and raise Stopped."""
        self.save(step, replicated)
        with failures.fatal():
            self._checkpoints.wait()
        say(
            f"stopped at step {step} of {self._plan.total} and saved: "
            "the same command goes on there."
        )
        raise Stopped

    def check(self, replicated: TrainState) -> None:
        """Raise UserError naming the first step that was not finite, unless these are left out."""
        steps, first = map(int, distributed.to_host(replicated.not_finite))
        if not steps or self._plan.step.skip:
            return
        self._checkpoints.wait()
        good = self._checkpoints.steps()
        last = (
            f"the last good checkpoint is of step {good[0]}"
            if good
            else "there is no checkpoint before it"
        )
        raise UserError(
            f"the loss, its gradient or the prompts are not finite at step {first}; {last} "
            f"({self._checkpoints.directory}). The images of the step: "
            f"{', '.join(self._images_of(first))}. Look at these, try a smaller train.visual_lr or "
            "dtype=float32, or leave such steps out with --config.train.skip_nonfinite=True."
        )
