"""Learning rates, averages over epochs, and the optimizers of the published methods.

A schedule is an argument of the compiled step, so runs that differ only in it share one program.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dpt_jax.clip.blocks import Array, Params
from dpt_jax.data.loader import steps_per_epoch
from dpt_jax.methods import METHODS
from dpt_jax.prompts import Prompts

WEIGHT_DECAY = 5e-4
WARMUP_LR = 1e-5
TEXT_WARMUP_EPOCHS = 1  # of weights too
LAST_LR = 1e-6  # of a cosine by steps
Scalar = Any  # a number or a 0-d array: of NumPy on the host, of JAX in a step


class Schedule(NamedTuple):
    """Learning rates and phases of a run."""

    visual_lr: Scalar  # peak learning rate of the visual side
    text_lr: Scalar  # of the text side
    warmup_epochs: Scalar  # of the visual side
    schedule_epochs: Scalar  # length of the cosine
    steps_per_epoch: Scalar
    guidance_epochs: Scalar = 0
    # (epochs,), weights of the average over epochs that replaces the prompts at the end (PromptSRC)
    average: tuple[float, ...] | np.ndarray | Array | None = None
    weights_lr: Scalar | None = None  # of weights of CLIP, None if none are learned
    cosine_steps: Scalar | None = None  # length of a cosine by steps, None for the one by epochs
    seed: Scalar = 0  # of dropout

    def as_arrays(self) -> "Schedule":
        """Return the schedule as float32 and int32 arrays."""
        real = ("visual_lr", "text_lr", "average", "weights_lr")
        return Schedule(
            **{
                name: x if x is None else np.asarray(x, np.float32 if name in real else np.int32)
                for name, x in self._asdict().items()
            }
        )


def run_length(config: ConfigDict, images: int) -> tuple[int, int]:
    """Return the number of steps of the towers' training, and of an epoch, on these images."""
    train = config.train
    per_epoch = steps_per_epoch(images, train.batch_size, train.keep_partial)
    if not METHODS[config.method].in_towers:
        return 0, per_epoch
    return train.steps_per_shot * config.dataset.shots or per_epoch * train.epochs, per_epoch


def learning_rates(schedule: Schedule, step: Scalar) -> dict[str, Array]:
    """Return the learning rates of visual prompts, text prompts and weights at a step (from 0).

    By epochs a rate is constant within an epoch e: 1e-5 while e < w, then
    base · (1 + cos(π (e − w) / E_t)) / 2. The cosine starts at the end of warm-up and does not
    reach zero. By steps it falls from base at step 0 to 1e-6 at the end, without warm-up.
    """

    def falling(done: Scalar, total: Scalar) -> Array:
        # (1 + cos(π done / total)) / 2, without the cancellation near its end.
        return jnp.sin((total - done) * (jnp.pi / 2 / total)) ** 2

    def rate(base: Scalar, warmup_epochs: Scalar) -> Array:
        if schedule.cosine_steps is not None:
            return LAST_LR + (base - LAST_LR) * falling(step, schedule.cosine_steps)
        epoch = jnp.asarray(step) // schedule.steps_per_epoch
        cosine = falling(epoch - warmup_epochs, schedule.schedule_epochs)
        return jnp.where(epoch < warmup_epochs, WARMUP_LR, base * cosine)

    rates = {
        "visual": rate(schedule.visual_lr, schedule.warmup_epochs),
        "text": rate(schedule.text_lr, TEXT_WARMUP_EPOCHS),
    }
    if schedule.weights_lr is not None:
        rates["weights"] = rate(schedule.weights_lr, TEXT_WARMUP_EPOCHS)
    return rates


def rate_of(part: str) -> str:
    """Return the name of the learning rate of a part, see `learning_rates`."""
    return {"text": "text", "meta_net": "text", "weights": "weights"}.get(part, "visual")


def epoch_weights(epochs: int, mean: float, deviation: float) -> tuple[float, ...] | None:
    """Return w_e = exp(−(e − μ)² / 2σ²) of epochs e = 1 … N, normalised to the sum 1.

    None for a deviation of 0, which turns the average off.
    """
    if not deviation:
        return None
    exponents = -((np.arange(1, epochs + 1) - mean) ** 2) / (2 * deviation**2)
    # The largest is 1 before summing, so a mean far from all epochs does not underflow.
    weights = np.exp(exponents - exponents.max())
    return tuple((weights / weights.sum()).tolist())


def average_epochs(
    schedule: Schedule, step: Scalar, prompts: Prompts, average: Prompts | None
) -> tuple[Prompts, Prompts]:
    """Return the prompts after `step` (from 1), and the weighted sum θ̄ over the epochs so far.

    θ̄ = Σ w_e θ_e, with θ_e the prompts after the last step of epoch e. Training does not depend on
    it; after the last step it replaces the prompts.
    """
    weights = jnp.asarray(schedule.average, jnp.float32)
    epoch, within = step // schedule.steps_per_epoch, step % schedule.steps_per_epoch
    weight = jnp.where(within == 0, weights[epoch - 1], 0.0)
    average = jax.tree.map(lambda sum, own: sum + weight * own, average, prompts)
    last = step == len(weights) * schedule.steps_per_epoch
    return jax.tree.map(lambda sum, own: jnp.where(last, sum, own), average, prompts), average


def momentum_sgd(weight_decay: float) -> optax.GradientTransformation:
    """Return SGD with momentum 0.9. Weight decay is added to the gradient before momentum."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(0.9))


def adam(eps: float = 1e-8) -> optax.GradientTransformation:
    """Return Adam as PyTorch has it, with β of 0.9 and 0.999.

    Unlike Optax's, it computes 1 − β^t by expm1, which avoids a float32 rounding error of 3e-5 at
    the first steps.
    """

    def update(
        gradient: Params, state: optax.ScaleByAdamState, _: Params | None = None
    ) -> tuple[Params, optax.ScaleByAdamState]:
        count = state.count + 1
        mu = optax.tree.update_moment(gradient, state.mu, 0.9, 1)
        nu = optax.tree.update_moment(gradient, state.nu, 0.999, 2)
        first, second = (-jnp.expm1(count * math.log(beta)) for beta in (0.9, 0.999))
        steps = jax.tree.map(lambda m, v: m / first / (jnp.sqrt(v / second) + eps), mu, nu)
        return steps, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def lpplus(weight_decay: float) -> optax.GradientTransformation:
    """Return LP++'s SGD. The gradient of α is never reset, so each step subtracts the sum."""
    parts = {"momentum": momentum_sgd(weight_decay), "sum": optax.trace(1.0)}
    labels = {"weight": "momentum", "bias": "momentum", "alpha": "sum"}
    return optax.partition(parts, labels)


# From weight decay to a transformation whose steps are multiplied by minus the learning rate. The
# decay of AdamW is decoupled.
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": momentum_sgd,
    "adamw": lambda decay: optax.chain(adam(), optax.add_decayed_weights(decay)),
    "tip_adamw": lambda decay: optax.chain(adam(eps=1e-4), optax.add_decayed_weights(decay)),
    "adam_l2": lambda decay: optax.chain(optax.add_decayed_weights(decay), adam()),
    "lpplus": lpplus,
}


@functools.lru_cache  # the same object every time, since `make_step` caches by it
def make_optimizer(
    name: str = "sgd", weight_decay: float = WEIGHT_DECAY
) -> optax.GradientTransformation:
    """Return the optimizer of the learned parts, "sgd" or "adamw" of OPTIMIZERS."""
    return OPTIMIZERS[name](weight_decay)


def descend(
    optimizer: optax.GradientTransformation,
    gradient: Prompts,
    opt_state: optax.OptState,
    prompts: Prompts,
    rates: Mapping[str, Array],
) -> tuple[Prompts, optax.OptState]:
    """Return prompts and state after a step, each part at its rate, see `learning_rates`."""
    steps, opt_state = optimizer.update(gradient, opt_state, prompts)

    def move(part: str) -> Prompts:
        rate = -rates[rate_of(part)]
        return jax.tree.map(lambda x, step: x + rate * step, prompts[part], steps[part])

    return {part: move(part) for part in prompts}, opt_state


def state_to_save(opt_state: optax.OptState) -> Prompts:
    """Return the whole state of the optimizer: SGD's momentum, or AdamW's moments and count.

    The tree names no Optax class, so other versions of Optax can restore it.
    """
    momentum = optax.tree.get(opt_state, "trace")
    if momentum is not None:
        return momentum
    return {name: optax.tree.get(opt_state, name) for name in ("count", "mu", "nu")}


def state_from_saved(new: optax.OptState, saved: Prompts) -> optax.OptState:
    """Return the state of an optimizer whose `state_to_save` was `saved`.  new: the initial one."""
    is_sgd = optax.tree.get(new, "trace") is not None
    return optax.tree.set(new, **({"trace": saved} if is_sgd else saved))
