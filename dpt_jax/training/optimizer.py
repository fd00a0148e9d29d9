"""SGD as the published methods use it, with a learning rate for each of the two sides."""

import functools
from collections.abc import Mapping

import jax
import optax

from dpt_jax.prompts import Prompts

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
TEXT_PARTS = ("text", "meta_net")  # of the prompts; the others are of the visual side


@functools.lru_cache  # the same object for every call, as `make_step` caches by it
def make_optimizer() -> optax.GradientTransformationExtraArgs:
    """Return momentum SGD on prompts, with weight decay added to the gradient before momentum.

    `update` takes the learning rates of the step as `rates`, see `schedule.learning_rates`: they
    follow the steps of the run, also if some of them were left out.
    """
    return optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.trace(MOMENTUM), _scale_by_rates()
    )


def _scale_by_rates() -> optax.GradientTransformationExtraArgs:
    """Multiply each part by minus the learning rate of its side."""

    def update(
        updates: Prompts,
        state: optax.EmptyState,
        prompts: Prompts | None = None,
        *,
        rates: Mapping[str, jax.Array],
        **_: object,
    ) -> tuple[Prompts, optax.EmptyState]:
        def scale(part: str) -> Prompts:
            rate = -rates["text" if part in TEXT_PARTS else "visual"]
            return jax.tree.map(lambda x: rate * x, updates[part])

        return {part: scale(part) for part in updates}, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def state_to_save(opt_state: optax.OptState) -> Prompts:
    """Return the momentum, a tree like the prompts: the whole state of the optimizer.

    The tree names no class of Optax, so another version of it can restore the state.
    """
    return optax.tree.get(opt_state, "trace")


def state_from_saved(
    optimizer: optax.GradientTransformation, prompts: Prompts, momentum: Prompts
) -> optax.OptState:
    """Return the state of an optimizer whose `state_to_save` was `momentum`."""
    return optax.tree.set(optimizer.init(prompts), trace=momentum)
