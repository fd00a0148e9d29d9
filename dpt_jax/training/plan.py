"""The plan of a run: its steps, its schedule, and the batches that it takes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.data import loader
from dpt_jax.methods import METHODS, WEIGHTS
from dpt_jax.training.optimizer import Schedule, epoch_weights, make_optimizer, run_length
from dpt_jax.training.setup import Experiment, shared_loading
from dpt_jax.training.step import StepConfig


class Plan(NamedTuple):
    """The numbers of a training run."""

    images_per_host: int  # of a batch
    steps: int  # of the whole run
    schedule: Schedule
    step: StepConfig
    optimizer: optax.GradientTransformationExtraArgs

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch."""
        return int(self.schedule.steps_per_epoch)

    @property
    def epochs(self) -> int:
        """Return the number of epochs; the last one may be incomplete."""
        return -(-self.steps // self.steps_per_epoch)

    def epoch(self, step: int) -> int:
        """Return how many epochs have ended after a step; the last one ends with the run."""
        return self.epochs if step == self.steps else step // self.steps_per_epoch


def make_plan(config: ConfigDict, images: int) -> Plan:
    """Return the plan of a run on this number of images."""
    train = config.train
    per_host = -(-min(train.batch_size, images) // jax.process_count())
    step = StepConfig(
        alpha=config.loss.alpha,
        # A microbatch larger than the share of a device would only be padded.
        microbatch=min(train.microbatch, -(-per_host // jax.local_device_count())),
        skip=train.skip_nonfinite,
        guidance=config.loss.guidance_epochs > 0,
    )
    steps, per_epoch = run_length(config, images)
    schedule = Schedule(
        visual_lr=train.visual_lr,
        text_lr=train.text_lr,
        warmup_epochs=train.warmup_epochs,
        schedule_epochs=train.schedule_epochs or train.epochs,
        steps_per_epoch=per_epoch,
        guidance_epochs=config.loss.guidance_epochs,
        average=epoch_weights(train.epochs, train.average_mean, train.average_deviation),
        weights_lr=train.weights_lr if WEIGHTS in METHODS[config.method].parts else None,
        cosine_steps=steps if train.schedule == "steps" else None,
        seed=config.seed,
    )
    optimizer = make_optimizer(train.optimizer, train.weight_decay)
    return Plan(per_host, steps, schedule, step, optimizer)


def train_batches(
    experiment: Experiment,
    plan: Plan,
    start: int,
    transfer: Callable[[loader.Batch], Any] | None = None,
) -> Iterator[Any]:
    """Yield this host's batches from step `start` on, see `loader.train_batches`."""
    config, dataset = experiment.config, experiment.dataset
    loading = loader.Loading(
        **shared_loading(experiment),
        examples=dataset.train,
        batch_size=config.train.batch_size,
        epochs=plan.epochs,
        seed=config.seed,
        augment=config.train.augment,
        shift=config.train.shift,
        partial=config.train.keep_partial,
    )
    return loader.train_batches(loading, start, transfer)


def to_devices(plan: Plan, batch: loader.Batch) -> tuple[loader.Batch, loader.Batch]:
    """Return a batch, and a copy that is sharded over this host's devices."""
    devices, part = jax.local_device_count(), plan.step.microbatch or 1
    return batch, distributed.place(loader.shard(batch, plan.images_per_host, devices, part))
