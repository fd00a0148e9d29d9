"""The compiled programs of a step, ready to run on a batch in memory, and their time."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dpt_jax import distributed
from dpt_jax.data.loader import Batch
from dpt_jax.evaluation.evaluate import make_programs
from dpt_jax.training.initial_prompts import initial_prompts
from dpt_jax.training.optimizer import Schedule, make_optimizer
from dpt_jax.training.setup import Experiment
from dpt_jax.training.step import StepConfig, make_step, new_state
from dpt_jax.training.texts import consistency_target


class Work(NamedTuple):
    """A function that runs a program and waits for its results, the program, its arguments."""

    run: Callable[[], None]
    program: Any
    arguments: tuple[Any, ...]


def training(experiment: Experiment, batch: Batch, microbatch: int = 0) -> Work:
    """Return the training step.  batch: with a leading axis of devices."""
    loss, optimizer = experiment.config.loss, make_optimizer()
    frozen = experiment.frozen._replace(target=consistency_target(experiment))
    config = StepConfig(loss.alpha, microbatch, guidance=loss.guidance_epochs > 0)
    step = make_step(experiment.model, optimizer, config)
    schedule = distributed.replicate(
        Schedule(0.01, 0.002, 1, 2, 1, loss.guidance_epochs).as_arrays()
    )
    prompts = initial_prompts(experiment)
    state = distributed.replicate(new_state(experiment.model, config, prompts, optimizer))
    arguments = state, frozen, batch, schedule

    def run() -> None:
        nonlocal state  # the step donates it
        state = jax.block_until_ready(step(state, frozen, batch, schedule))

    return Work(run, step, arguments)


def evaluation(experiment: Experiment, batch: Batch) -> tuple[Work, Work]:
    """Return the work of classifying a batch with known text features, and of encoding texts."""
    programs, frozen = make_programs(experiment.model), experiment.frozen
    prompts = programs.merge(frozen.clip, distributed.replicate(initial_prompts(experiment)))
    texts = programs.encode_texts(frozen, prompts)

    def work(program: Any, *arguments: Any) -> Work:
        return Work(lambda: jax.block_until_ready(program(*arguments)), program, arguments)

    classify = work(programs.classify, frozen, prompts, texts, batch["image"])
    return classify, work(programs.encode_texts, frozen, prompts)


def times(step: Callable[[], object], steps: int) -> tuple[float, float]:
    """Return the seconds of the first call, and the median of `steps` (at least one) later ones."""

    def seconds() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    first = seconds()
    return first, statistics.median(seconds() for _ in range(max(steps, 1)))
