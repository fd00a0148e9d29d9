"""Learning rates and AdamW against their formulas in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from dpt_jax.training.optimizer import Schedule, learning_rates, make_optimizer


@pytest.mark.parametrize("step", [0, 3, 4, 102, 197, 198, 199])
def test_learning_rates_to_the_end_of_a_long_run(step):
    """Near the end of a cosine, 1 + cos cancels."""
    by_epochs = Schedule(0.01, 0.002, 4, 200, steps_per_epoch=1, weights_lr=2e-4)
    by_steps = by_epochs._replace(cosine_steps=200)
    cosine = (1 + np.cos(np.pi * (step - 4) / 200)) / 2
    rate = learning_rates(by_epochs.as_arrays(), step)["visual"]
    assert rate == pytest.approx(0.01 * cosine if step >= 4 else 1e-5, rel=1e-6)
    expected = 1e-6 + (2e-4 - 1e-6) * (1 + np.cos(np.pi * step / 200)) / 2
    rate = learning_rates(by_steps.as_arrays(), step)["weights"]
    assert rate == pytest.approx(expected, rel=1e-6)


def test_first_steps_of_adamw():
    """1 − β^t is precise although β is near 1 and t is small."""
    start, gradients = (np.random.default_rng(0).normal(size=(n, 5)) for n in (1, 3))
    optimizer, prompts = make_optimizer("adamw", 0.01), {"weights": jnp.float32(start[0])}
    state, x, mean, square = optimizer.init(prompts), start[0], 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        adam = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        steps, state = optimizer.update({"weights": jnp.float32(gradient)}, state, prompts)
        np.testing.assert_allclose(steps["weights"], adam + 0.01 * x, rtol=3e-6)
        x, prompts = x - adam - 0.01 * x, {"weights": prompts["weights"] - steps["weights"]}
