"""Training: the loop around the step, what it keeps, and how it stops."""

import functools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dpt_jax.data import loader
from dpt_jax.data.dataset import Dataset
from dpt_jax.errors import UserError
from dpt_jax.inference.experiment import Experiment, initial_prompts, training_meta
from dpt_jax.runtime import devices
from dpt_jax.runtime.console import Progress, say
from dpt_jax.runtime.metrics import MetricWriter
from dpt_jax.runtime.signals import Stopped, StopRequest
from dpt_jax.storage.checkpoints import Checkpoints, locked
from dpt_jax.training.optimizer import OptimizerConfig, learning_rates, make_optimizer
from dpt_jax.training.step import StepConfig, TrainState, make_step

TRAIN_FILES = "train_files.txt"
STEPS_BETWEEN_CLOCKS = (
    20  # of several hosts, for which a look at the first one's clock is a message
)


class Plan(NamedTuple):
    """The numbers of a training. rows: of a batch on this host."""

    rows: int
    total: int
    schedule: OptimizerConfig
    step: StepConfig

    @property
    def per_epoch(self) -> int:
        """Steps."""
        return self.step.steps_per_epoch


def plan(config: ConfigDict, images: int) -> Plan:
    """How a configuration trains on so many images."""
    rows = -(-min(config.train.batch_size, images) // jax.process_count())
    per_epoch = loader.steps_per_epoch(images, config.train.batch_size)
    schedule = OptimizerConfig(
        visual_lr=config.train.visual_lr,
        text_lr=config.train.text_lr,
        warmup_epochs=config.train.warmup_epochs,
        schedule_epochs=config.train.schedule_epochs or config.train.epochs,
        steps_per_epoch=per_epoch,
    )
    step = StepConfig(
        alpha=config.loss.alpha,
        guidance_epochs=config.loss.guidance_epochs,
        steps_per_epoch=per_epoch,
        microbatch=min(config.train.microbatch, -(-rows // jax.local_device_count())),
        skip=config.train.skip_nonfinite,
    )
    return Plan(rows, per_epoch * config.train.epochs, schedule, step)


class Keeper:
    """Saves a run when it is due, and stops it behind a step that is not finite."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        about: dict[str, Any],
        plan: Plan,
        config: ConfigDict,
        images_of: Callable[[int], list[str]],
    ) -> None:
        """about: what is saved with the prompts, whenever. config: config.checkpoint. images_of: the paths of a step's
        images."""
        self._checkpoints, self._about, self._plan, self._images_of = (
            checkpoints,
            about,
            plan,
            images_of,
        )
        self._steps, self._minutes = config.every_steps, config.every_minutes
        self._saved = time.monotonic()

    def due(self, now: int) -> bool:
        """Whether to save behind step `now`: every so many steps and minutes, and at the end.

        The hosts ask together, and the first one's clock goes.
        """
        if now % self._steps == 0 or now == self._plan.total:
            return True
        if not self._minutes or (jax.process_count() > 1 and now % STEPS_BETWEEN_CLOCKS):
            return False
        return devices.first_says(time.monotonic() - self._saved > 60 * self._minutes)

    def save(self, now: int, replicated: TrainState) -> None:
        """Starts to save the state behind step `now`.  Raises UserError, see `check`."""
        self.check(replicated)
        host = devices.to_host(replicated)
        about = self._about | {"epoch": now // self._plan.per_epoch, "bad": host.bad.tolist()}
        self._checkpoints.save(
            now, host.prompts, about, {"opt_state": host.opt_state, "totals": host.totals}
        )
        self._saved = time.monotonic()

    def stop(self, now: int, replicated: TrainState) -> NoReturn:
        """Saves the state behind step `now` and raises Stopped."""
        self.save(now, replicated)
        self._checkpoints.wait()
        say(
            f"stopped at step {now} of {self._plan.total} and saved: the same command goes on there."
        )
        raise Stopped

    def check(self, replicated: TrainState) -> None:
        """Raises UserError naming the first step that was not finite, unless such steps are left out."""
        bad, first = devices.to_host(replicated.bad).tolist()
        if not bad or self._plan.step.skip:
            return
        self._checkpoints.wait()
        good = self._checkpoints.steps()
        last = (
            f"the last good checkpoint is of step {good[0]}"
            if good
            else "there is no checkpoint before it"
        )
        raise UserError(
            f"the loss or its gradient is not finite at step {first}; {last} ({self._checkpoints.directory}). The "
            f"images of the step: {', '.join(self._images_of(first))}. Look at these, try a smaller train.visual_lr "
            "or dtype=float32, or leave such steps out with --config.train.skip_nonfinite=True."
        )


def train(experiment: Experiment, workdir: pathlib.Path) -> Any:
    """Trains to the last epoch, from the newest checkpoint where there is one; the prompts, on the host.

    Writes checkpoints, metrics and the list of training images to the workdir.
    Raises UserError where there is nothing to train on, another process trains
    in the workdir, a checkpoint cannot be written or a step is not finite, and
    Stopped when a signal asks for it.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    check_trainable(dataset, config.dataset.name)
    hosts, local = jax.process_count(), jax.local_device_count()
    numbers = plan(config, len(dataset.train))
    total, microbatch = numbers.total, numbers.step.microbatch or 1
    optimizer = make_optimizer(numbers.schedule)
    step = make_step(model, optimizer, numbers.step)
    make_batches = functools.partial(
        loader.train_batches,
        dataset.read,
        dataset.train,
        model.clip.image_size,
        config.train.batch_size,
        config.train.epochs,
        config.seed,
        config.train.augment,
        config.dataset.workers,
        skip_unreadable=config.dataset.on_error == "skip",
        host=jax.process_index(),
        hosts=hosts,
        preprocessing=model.clip.preprocessing,
    )

    def images_of(step: int) -> list[str]:
        return [dataset.train[i].path for i in next(make_batches(start=step - 1))["index"]]

    if devices.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
    with (
        locked(workdir),
        StopRequest() as stop,
        Checkpoints(workdir, config.checkpoint.keep, create=True) as checkpoints,
    ):
        if devices.is_first():
            paths = "".join(f"{example.path}\n" for example in dataset.train)
            (workdir / TRAIN_FILES).write_text(paths, encoding="utf-8", errors="surrogateescape")
        state = begin(experiment, checkpoints, optimizer)
        start, learned = int(state.step), sum(x.size for x in jax.tree.leaves(state.prompts))
        if start == total:
            say(f"{workdir}: training is finished (step {total}); evaluating only.")
            return state.prompts
        if start:
            say(f"{workdir}: going on at step {start} of {total}.")
        say(
            f"Training {model.prompts.method} on {len(dataset.train)} images of {len(dataset.classnames)} classes: "
            f"{config.train.epochs} epochs of {numbers.per_epoch} steps, {learned:,} learned numbers, "
            f"{_devices_in_words()}, {jnp.dtype(model.dtype).name}."
        )
        keeper = Keeper(
            checkpoints, training_meta(experiment), numbers, config.checkpoint, images_of
        )
        batches, replicated = make_batches(start=start), devices.replicate(state)
        unreadable: set[int] = set()
        with MetricWriter(workdir, start) as writer, Progress("train", total, start) as progress:
            since, images = time.perf_counter(), 0
            for now in range(start + 1, total + 1):
                try:
                    batch = next(batches)
                except Exception:
                    # A SIGTERM to all processes ends the loader's; what they had is loaded again when the run goes on.
                    if not stop or hosts > 1:
                        raise
                    keeper.stop(now - 1, replicated)
                images += len(batch["label"]) * hosts
                unreadable.update(batch["index"][batch["weight"] == 0].tolist())
                replicated = step(
                    replicated,
                    experiment.frozen,
                    loader.shard(batch, numbers.rows, local, microbatch),
                )
                progress.advance()
                if now % numbers.per_epoch == 0:
                    keeper.check(replicated)
                    values = _epoch_values(replicated, numbers.schedule, now)
                    values["images_per_s"] = images / (time.perf_counter() - since)
                    since, images = time.perf_counter(), 0
                    writer.write(now, values)
                    progress.report(
                        _line(values, config.train.epochs), f"loss {values['loss']:.3f}"
                    )
                if stop.after(now) and now < total:
                    keeper.stop(now, replicated)
                if keeper.due(now):
                    keeper.save(now, replicated)
        checkpoints.wait()
        if left_out := devices.sum_over_hosts(len(unreadable)):
            say(
                f"{left_out} of {len(dataset.train)} training images could not be read and were left out."
            )
        host = devices.to_host(replicated)
        if host.bad[0]:
            say(
                f"{host.bad[0]} of {total} steps were not finite and were left out, the first is step {host.bad[1]}."
            )
        return host.prompts


def check_trainable(dataset: Dataset, name: str) -> None:
    """Raises UserError where a class has no image to train on."""
    if not dataset.train:
        raise UserError(
            f"{name} has test images only: train on another dataset, and test its prompts here with "
            f"--config=configs/METHOD.py:{name} --mode=eval --config.init_from=WORKDIR."
        )
    without = sorted(set(range(len(dataset.classnames))) - {e.label for e in dataset.train})
    if without:
        missing = dataset.classnames[without[0]]
        raise UserError(
            f"{name} has no training images of class {missing!r}, so it cannot be trained on."
        )


def begin(
    experiment: Experiment, checkpoints: Checkpoints, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state that a run goes on with, on the host: of the newest whole checkpoint, or a new one.

    New prompts are made for a new run alone: one that has started does not need what `init_from` names any more.
    """
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0))
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    totals = np.zeros(3, np.float32)
    found = checkpoints.resume(like, {"opt_state": optimizer.init(like), "totals": totals})
    if found is None:
        prompts = initial_prompts(experiment)
        return TrainState(
            np.int32(0), prompts, optimizer.init(prompts), totals, np.zeros(2, np.int32)
        )
    saved, training = found
    bad = np.array(saved.meta.get("bad", (0, 0)), np.int32)
    return TrainState(np.int32(saved.step), saved.prompts, **training, bad=bad)


def _devices_in_words() -> str:
    count, hosts = jax.device_count(), jax.process_count()
    words = f"{count} {jax.default_backend()} device{'s' if count > 1 else ''}"
    return f"{words} of {hosts} hosts" if hosts > 1 else words


def _epoch_values(replicated: TrainState, schedule: OptimizerConfig, now: int) -> dict[str, float]:
    """Means over the epoch that ends with step `now`, and its learning rates."""
    total, hits, images = map(float, devices.to_host(replicated.totals))
    if not images and not devices.to_host(replicated.bad)[0]:
        raise UserError(
            "none of the training images could be read: check dataset.root, and where the images are."
        )
    epoch = now // schedule.steps_per_epoch
    rates = {f"{name}_lr": float(rate(now - 1)) for name, rate in learning_rates(schedule).items()}
    images = images or math.nan  # of an epoch whose steps were all left out
    return {"epoch": epoch, "loss": total / images, "accuracy": hits / images, **rates}


def _line(values: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {values['epoch']:.0f}/{epochs}  loss {values['loss']:.4f}  accuracy {values['accuracy']:.3f}  "
        f"lr visual {values['visual_lr']:.2e} text {values['text_lr']:.2e}  {values['images_per_s']:.0f} images/s"
    )
