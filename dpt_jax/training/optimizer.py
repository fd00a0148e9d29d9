"""SGD as the published methods use it: one group for the visual side, one for the text prompt."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from dpt_jax.prompts import Prompts

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
TEXT_PARTS = ("text", "meta_net")  # of the prompts; the others are of the visual side


@functools.lru_cache  # the same one, also to `make_step`
def make_optimizer() -> optax.GradientTransformationExtraArgs:
    """Return momentum SGD on prompts, with weight decay added to the gradient before momentum.

    `update` takes the learning rates of the step as `rates`, see `schedule.learning_rates`: they
    follow the steps of the run, also where some of them were left out.
    """
    return optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.trace(MOMENTUM), _scale_by_rates()
    )


def _scale_by_rates() -> optax.GradientTransformationExtraArgs:
    """Multiply by minus the rate of each part: that of the text, or the visual one."""

    def update(
        updates: Prompts,
        state: optax.EmptyState,
        prompts: Any = None,
        *,
        rates: Mapping[str, Any],
        **_: Any,
    ) -> tuple[Prompts, optax.EmptyState]:
        factors = {group: -rate for group, rate in rates.items()}

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
