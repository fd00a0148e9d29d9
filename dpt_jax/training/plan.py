"""How long a run trains, in which steps, and where the images of a step come from."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from dpt_jax.data import loader
from dpt_jax.training.averaging import epoch_weights
from dpt_jax.training.schedule import Schedule
from dpt_jax.training.setup import Experiment
from dpt_jax.training.step import StepConfig

# Batches from step `start` on, for this host.
BatchesFrom = Callable[[int], Iterator[loader.Batch]]


class Plan(NamedTuple):
    """The numbers of a training run."""

    images_per_host: int  # of a batch
    total: int  # steps
    schedule: Schedule
    step: StepConfig

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch."""
        return self.schedule.steps_per_epoch


def make_plan(config: ConfigDict, images: int) -> Plan:
    """Return how a configuration trains on so many images."""
    train = config.train
    per_host = -(-min(train.batch_size, images) // jax.process_count())
    steps_per_epoch = loader.steps_per_epoch(images, train.batch_size)
    schedule = Schedule(
        visual_lr=train.visual_lr,
        text_lr=train.text_lr,
        warmup_epochs=train.warmup_epochs,
        schedule_epochs=train.schedule_epochs or train.epochs,
        steps_per_epoch=steps_per_epoch,
        guidance_epochs=config.loss.guidance_epochs,
        average=epoch_weights(train.epochs, train.average_mean, train.average_deviation) or None,
    )
    step = StepConfig(
        alpha=config.loss.alpha,
        # A larger part than a device has images would be padded for nothing.
        microbatch=min(train.microbatch, -(-per_host // jax.local_device_count())),
        skip=train.skip_nonfinite,
        guided=config.loss.guidance_epochs > 0,
    )
    return Plan(per_host, steps_per_epoch * train.epochs, schedule, step)


def batches_of(experiment: Experiment) -> BatchesFrom:
    """Return the loader of a run's training images, which can begin at any step."""
    config, dataset = experiment.config, experiment.dataset

    loading = loader.TrainLoading(
        read=dataset.read,
        examples=dataset.train,
        size=experiment.model.clip.image_size,
        preprocessing=experiment.model.clip.preprocessing,
        batch_size=config.train.batch_size,
        epochs=config.train.epochs,
        seed=config.seed,
        augment=config.train.augment,
        shift=config.train.shift,
        workers=config.dataset.workers,
        skip_unreadable=config.dataset.on_error == "skip",
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    return functools.partial(loader.train_batches, loading)
