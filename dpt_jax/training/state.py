"""The plan of a run, the state in which it starts or resumes, what it saves, and how it stops."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.config import FREE, UNBOUND
from dpt_jax.data import loader
from dpt_jax.errors import UserError
from dpt_jax.logging import say
from dpt_jax.methods import CLASSIFIER, METHODS, WEIGHTS
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.classifiers import CLASSIFIERS
from dpt_jax.training import optimizer as optimizers
from dpt_jax.training.checkpoints import Checkpoints, Saved, steps_of
from dpt_jax.training.losses import losses
from dpt_jax.training.saved import (
    Record,
    check_same_clip,
    check_same_settings,
    check_shapes,
    initial_prompts,
    shapes_of,
    training_meta,
)
from dpt_jax.training.setup import Experiment, loading
from dpt_jax.training.step import NotFinite, StepConfig, Totals, TrainState
from dpt_jax.training.workdir import TRAIN_FILES

# Keys of a checkpoint's metadata: whether a callback has ended the training, and the steps that
# trained the classifier.
ENDED, CLASSIFIER_STEPS = "ended", "classifier_steps"
# With several hosts, reading host 0's clock is a collective, so it is not done at every step.
STEPS_BETWEEN_CLOCKS = 20
# EX_TEMPFAIL of sysexits.h: stopped and saved, and the same command resumes.
EXIT_CODE = 75


class Plan(NamedTuple):
    """The numbers of a training run."""

    images_per_host: int  # of a batch
    steps: int  # of the whole run
    schedule: optimizers.Schedule
    step: StepConfig

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
        optimizer=optimizers.make_optimizer(train.optimizer, train.weight_decay),
    )
    steps, per_epoch = optimizers.run_length(config, images)
    schedule = optimizers.Schedule(
        visual_lr=train.visual_lr,
        text_lr=train.text_lr,
        warmup_epochs=train.warmup_epochs,
        schedule_epochs=train.schedule_epochs or train.epochs,
        steps_per_epoch=per_epoch,
        guidance_epochs=config.loss.guidance_epochs,
        average=optimizers.epoch_weights(train.epochs, train.average_mean, train.average_deviation),
        weights_lr=train.weights_lr if WEIGHTS in METHODS[config.method].parts else None,
        cosine_steps=steps if train.schedule == "steps" else None,
        seed=config.seed,
    )
    return Plan(per_host, steps, schedule, step)


def new_state(model: PromptedCLIP, plan: Plan, prompts: Prompts) -> TrainState:
    """Return the initial state, on the host."""
    zero, step = np.int32(0), plan.step
    names = ["images", "hits"]
    names += [f"loss_{name}" for name in losses(model.config, step.alpha, step.guidance)]
    average = None
    if plan.schedule.average is not None:
        average = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), prompts)
    totals = dict.fromkeys(names, np.float32(0))
    opt_state = step.optimizer.init(prompts)
    return TrainState(zero, prompts, opt_state, totals, NotFinite(zero, zero), average)


def train_batches(
    experiment: Experiment, plan: Plan, start: int
) -> Iterator[tuple[loader.Batch, loader.Batch]]:
    """Yield this host's batches from step `start` on, each with a copy sharded over its devices."""

    def to_devices(batch: loader.Batch) -> tuple[loader.Batch, loader.Batch]:
        devices, part = jax.local_device_count(), plan.step.microbatch or 1
        return batch, distributed.place(loader.shard(batch, plan.images_per_host, devices, part))

    size, examples = experiment.config.train.batch_size, experiment.dataset.train
    how = loading(experiment, examples, size, epochs=plan.epochs)
    return loader.train_batches(how, start, to_devices)


class Best(NamedTuple):
    """The prompts of the epoch with the highest validation accuracy so far, the first if tied."""

    accuracy: float
    epoch: int
    prompts: Prompts


@dataclasses.dataclass
class Saver:
    """Saves the states of a run, and measures its time from here on."""

    experiment: Experiment
    plan: Plan
    checkpoints: Checkpoints
    record: Record  # of the training, see `training_meta`
    best: Best | None  # with train.keep=best
    step: int = 0  # the last one that was saved

    def __post_init__(self) -> None:
        self._began = self._saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether to save after this step, by steps or by host 0's clock."""
        config = self.experiment.config.checkpoint
        if step % config.every_steps == 0:
            return True
        if not config.every_minutes or (jax.process_count() > 1 and step % STEPS_BETWEEN_CLOCKS):
            return False
        return distributed.first_says(time.monotonic() - self._saved_at > 60 * config.every_minutes)

    def save(self, state: TrainState, **more: Any) -> None:
        """Start writing a state, host arrays, unless its step is saved already.

        more: further entries of the metadata.
        """
        plan, step = self.plan, int(state.step) + more.get(CLASSIFIER_STEPS, 0)
        if step == self.step:
            return
        self.check_finite(state.not_finite)
        now = time.monotonic()
        prompts, training = state.prompts, _training(state)
        meta = {
            **self.record,
            "seconds": self.record["seconds"] + now - self._began,
            "steps_per_epoch": plan.steps_per_epoch,
            "epoch": plan.epoch(int(state.step)),
            "bad": [int(x) for x in state.not_finite],
            "parameters": _parameters(self.experiment.model.config.classifier, prompts),
            **more,
        }
        if best := self.best:
            training["best"] = best.prompts
            final = more.get(ENDED, False) or step == plan.steps
            meta["best"] = {"accuracy": best.accuracy, "epoch": best.epoch, "final": final}
            prompts = best.prompts if final else prompts
        self.checkpoints.save(step, prompts, meta, training)
        self.step, self._saved_at = step, now

    def keep_best(self, values: dict[str, float], prompts: Prompts) -> None:
        """Keep the prompts of an epoch, on devices, if its accuracy is the highest so far."""
        if self.best and values["val_accuracy"] > self.best.accuracy:
            epoch, prompts = int(values["epoch"]), distributed.to_host(prompts)
            self.best = Best(values["val_accuracy"], epoch, prompts)

    def check_finite(self, not_finite: NotFinite) -> None:
        """Raise UserError naming the first step that was not finite, unless the run skips them."""
        steps, first = map(int, not_finite)
        if not steps or self.plan.step.skip:
            return
        self.checkpoints.wait()
        good = steps_of(self.checkpoints.directory)
        batch, _ = next(train_batches(self.experiment, self.plan, first - 1))
        images = ", ".join(self.experiment.dataset.train[i].path for i in batch["index"])
        raise UserError(
            f"the loss, its gradient or the prompts are not finite at step {first}; checkpoints in "
            f"{self.checkpoints.directory}: {good or 'none'}. The images of the step: {images}. "
            "Check these, try a smaller train.visual_lr or dtype=float32, or skip such steps with "
            "--config.train.skip_nonfinite=True."
        )


def start_or_resume(
    experiment: Experiment,
    plan: Plan,
    checkpoints: Checkpoints,
    workdir: epath.Path,
    allow_changes: bool,
) -> tuple[TrainState, Saver]:
    """Return the state of the newest intact checkpoint, or a new state; and a Saver.

    A run that has started no longer needs the prompts of `init_from`.
    """
    keeps_best, saved = experiment.config.train.keep == "best", checkpoints.resume()
    if saved is None:
        fresh = initial_prompts(experiment)
        best = Best(-1.0, 0, fresh) if keeps_best else None
        saver = Saver(experiment, plan, checkpoints, training_meta(experiment), best)
        return new_state(experiment.model, plan, fresh), saver
    shapes = shapes_of(experiment.model)
    zeros: Prompts = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    new = new_state(experiment.model, plan, zeros)
    step = saved.step - saved.meta.get(CLASSIFIER_STEPS, 0)
    saved = saved._replace(step=step)
    record = training_meta(experiment, saved)
    check_same_clip(saved, experiment.pretrained, workdir)
    may_change = UNBOUND if allow_changes else FREE
    check_same_settings(workdir, saved.meta["settings"], record["settings"], may_change)
    _check_resumable(plan, saved, record, workdir, allow_changes)
    prompts, training = dict(saved.prompts), saved.training
    trained = {CLASSIFIER: prompts.pop(CLASSIFIER)} if CLASSIFIER in prompts else {}
    check_shapes(prompts, shapes, workdir)
    check_shapes(training, _training(new) | ({"best": shapes} if keeps_best else {}), workdir)
    state = new._replace(
        step=np.int32(step),
        # More epochs change what the classifier is trained on.
        prompts=prompts if step < plan.steps else {**prompts, **trained},
        opt_state=optimizers.state_from_saved(new.opt_state, training["momentum"]),
        totals=training["totals"],
        not_finite=NotFinite(*np.array(saved.meta["bad"], np.int32)),
        average=training.get("average"),
    )
    kept = saved.meta.get("best")
    best = Best(kept["accuracy"], kept["epoch"], training["best"]) if kept else None
    return state, Saver(experiment, plan, checkpoints, record, best, step)


def _check_resumable(
    plan: Plan, saved: Saved, record: Record, workdir: epath.Path, allow_changes: bool
) -> None:
    """Raise UserError if a run cannot resume with the present classes, images, steps and epochs.

    saved: with the step of the towers' training. record: of the training as it would resume.
    """
    meta, step, now = saved.meta, saved.step, plan.steps_per_epoch
    before, same_images = meta["steps_per_epoch"], meta["train_list"] == record["train_list"]
    if meta["classnames"] != record["classnames"]:
        why = "was trained on other class names: restore them"
    elif not (same_images or allow_changes):
        why = (
            f"was trained on other images, which its {TRAIN_FILES} lists: restore them, resume it "
            "with these by `dpt-jax train --allow_changes`"
        )
    elif plan.schedule.average is not None and (meta["epochs"], before) != (plan.epochs, now):
        why = (
            f"averages its prompts over {meta['epochs']} epochs of {before} steps, not over "
            f"{plan.epochs} of {now}: restore its epochs, batch size and images"
        )
    elif step > plan.steps or (step == plan.steps and before != now):
        why = (
            f"was trained for {step} steps, {before} an epoch, but these settings end at step "
            f"{plan.steps}, with {now} an epoch: give more epochs"
        )
    elif step < plan.steps and meta.get("best", {}).get("final"):
        why = "has ended with the prompts of its best epoch (train.keep=best): keep its epochs"
    else:
        if not same_images or before != now:
            what = "batches" if same_images else "training images"
            say(f"{workdir} now has other {what}: {now} steps per epoch (before: {before}).")
        return
    raise UserError(f"{workdir} {why}, or use another --workdir.")


def _parameters(classifier: str, prompts: Prompts) -> int:
    """Return the number of learned parameters.  Those of a classifier are not all learned."""
    if CLASSIFIER in prompts:
        learned = {name: prompts[CLASSIFIER][name] for name in CLASSIFIERS[classifier].learned}
        prompts = {**prompts, CLASSIFIER: learned}
    return sum(x.size for x in jax.tree.leaves(prompts))


def _training(state: TrainState) -> dict[str, Prompts | Totals]:
    """Return the parts of a state that a checkpoint saves, except the prompts."""
    momentum = optimizers.state_to_save(state.opt_state)
    average = {} if state.average is None else {"average": state.average}
    return {"momentum": momentum, "totals": state.totals, **average}


class Stopped(SystemExit):
    """The run was asked to stop, and has saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopRequest(contextlib.ExitStack):
    """A context in which SIGTERM and SIGINT request a stop; a second SIGINT ends the process.

    On several hosts, a SIGTERM to any of them stops all after the same step. JAX's preemption
    service handles it, and a SIGINT is passed on to that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = self._agreed = False
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        # Python allows signal handlers in the main thread only.
        for number in signals if threading.current_thread() is threading.main_thread() else ():
            self.callback(signal.signal, number, signal.signal(number, self._ask))

    def _ask(self, number: int, _: types.FrameType | None) -> None:
        # The next SIGINT ends the process at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        self._asked = True
        name = signal.Signals(number).name
        # Not by print, which the signal may have interrupted.
        os.write(2, f"{name}: stopping after this step (Ctrl-C again stops at once).\n".encode())

    def __bool__(self) -> bool:
        """Return whether this process was asked to stop."""
        return self._asked

    def after(self, step: int) -> bool:
        """Return whether the run stops after this step; all hosts must call it after every step."""
        if jax.process_count() == 1:
            return self._asked
        # This is true only once.
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(step)
        return self._agreed
