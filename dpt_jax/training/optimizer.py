"""SGD or AdamW as the published methods use them, with a learning rate for each kind of part."""

import functools
from collections.abc import Mapping

import jax
import optax

from dpt_jax.prompts import Prompts

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
# Whose learning rate a part of the prompts has; the others are of the visual side.
RATES = {"text": "text", "meta_net": "text", "weights": "weights"}


@functools.lru_cache  # the same object for every call, as `make_step` caches by it
def make_optimizer(
    name: str = "sgd", weight_decay: float = WEIGHT_DECAY
) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of the learned parts.

    `update` takes the learning rates of the step as `rates`, see `schedule.learning_rates`: they
    follow the steps of the run, also if some of them were left out.

    Args:
      name: "sgd", with momentum 0.9 and the decay added to the gradient before momentum, or
        "adamw", PyTorch's: β 0.9 and 0.999, ε 1e-8, and the decay apart from the gradient.
      weight_decay: Of all parts.
    """
    decay = optax.add_decayed_weights(weight_decay)
    first = (optax.scale_by_adam(), decay) if name == "adamw" else (decay, optax.trace(MOMENTUM))
    return optax.chain(*first, _scale_by_rates())


def _scale_by_rates() -> optax.GradientTransformationExtraArgs:
    """Multiply each part by minus its learning rate."""

    def update(
        updates: Prompts,
        state: optax.EmptyState,
        prompts: Prompts | None = None,
        *,
        rates: Mapping[str, jax.Array],
        **_: object,
    ) -> tuple[Prompts, optax.EmptyState]:
        def scale(part: str) -> Prompts:
            rate = -rates[RATES.get(part, "visual")]
            return jax.tree.map(lambda x: rate * x, updates[part])

        return {part: scale(part) for part in updates}, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def state_to_save(opt_state: optax.OptState) -> Prompts:
    """Return the whole state of the optimizer: SGD's momentum, or AdamW's moments and count.

    The tree names no class of Optax, so another version of it can restore the state.
    """
    momentum = optax.tree.get(opt_state, "trace")
    if momentum is not None:
        return momentum
    return {name: optax.tree.get(opt_state, name) for name in ("count", "mu", "nu")}


def state_from_saved(
    optimizer: optax.GradientTransformation, prompts: Prompts, saved: Prompts
) -> optax.OptState:
    """Return the state of an optimizer whose `state_to_save` was `saved`."""
    state = optimizer.init(prompts)
    is_sgd = optax.tree.get(state, "trace") is not None
    return optax.tree.set(state, **({"trace": saved} if is_sgd else saved))
