"""Training: from a new or a saved state to the last epoch, and then of a classifier."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.data import loader
from dpt_jax.data.look import check_readable, check_trainable, is_own, look
from dpt_jax.errors import UserError
from dpt_jax.logging import Progress, say, say_once
from dpt_jax.methods import CLASSIFIER, METHODS, WEIGHTS
from dpt_jax.prompts import Prompts
from dpt_jax.training import flops
from dpt_jax.training.checkpoints import Checkpoints, Saved, digest
from dpt_jax.training.classifier import encode_support, fit
from dpt_jax.training.initial_prompts import (
    check_shapes,
    initial_prompts,
    other_clip,
    shapes_of,
)
from dpt_jax.training.metrics import MetricWriter, Speed, tracing
from dpt_jax.training.optimizer import (
    Schedule,
    epoch_weights,
    learning_rates,
    make_optimizer,
    rate_of,
    run_length,
    state_from_saved,
    state_to_save,
)
from dpt_jax.training.process import Stopped, StopRequest, locked
from dpt_jax.training.record import Record, check_same_images, training_meta, write_train_files
from dpt_jax.training.setup import Experiment, consistency_target, shared_loading
from dpt_jax.training.step import (
    NotFinite,
    StepConfig,
    Totals,
    TrainState,
    make_step,
    new_state,
)
from dpt_jax.training.workdir import save_config

# Keys of a checkpoint's metadata: whether a callback has ended the training, and the steps that
# trained the classifier.
ENDED, CLASSIFIER_STEPS = "ended", "classifier_steps"
# With several hosts, reading host 0's clock is a message, so they do not read it at every step.
STEPS_BETWEEN_CLOCKS = 20


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


class Best(NamedTuple):
    """The prompts of the epoch with the highest validation accuracy so far, the first of equals."""

    accuracy: float
    epoch: int
    prompts: Prompts


# Gets the prompts, replicated; returns their accuracy on the validation images.
Validate = Callable[[Prompts], float]
# Gets the metrics of an epoch; the training ends if it returns true.
Callback = Callable[[dict[str, float]], object]


def train(
    experiment: Experiment,
    workdir: epath.Path,
    allow_changes: bool = False,
    callbacks: Sequence[Callback] = (),
    profile: int = 0,
    validate: Validate | None = None,
) -> Prompts:
    """Train to the last epoch, from the newest checkpoint if there is one; return the prompts.

    A classifier is trained after the last epoch of the other parts.

    Writes checkpoints, metrics and the list of training images to the workdir.

    Args:
      experiment: What is trained.
      workdir: Folder of the run.
      allow_changes: Whether a resumed run may have other images.
      callbacks: Called after each epoch, in this order.
      profile: Steps to trace with the profiler.
      validate: Called after each epoch, if there are validation images.

    Raises:
      UserError: if there is nothing to train on, another process trains in the workdir, a run
        resumes with other images (unless `allow_changes`), a checkpoint cannot be written, or a
        step is not finite.
      Stopped: after a signal, when the state is saved.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    check_trainable(dataset, config.dataset.name)
    if config.dataset.on_error == "skip":
        check_readable(dataset)
    if config.train.keep == "best" and not validate:
        raise UserError(
            f"train.keep=best needs validation images, and {config.dataset.name} has none: give it "
            "a folder val/, or use train.keep=last."
        )
    plan = make_plan(config, len(dataset.train))
    with (
        locked(workdir),
        StopRequest() as stop,
        Checkpoints(workdir, config.checkpoint.keep) as checkpoints,
    ):
        state, saver = start_or_resume(experiment, plan, checkpoints, workdir, allow_changes)
        distributed.check_same(lambda: {"initial prompt (init_from)": digest(state.prompts)})
        start = int(state.step)
        if start == plan.steps and bool(model.config.classifier) == (CLASSIFIER in state.prompts):
            say(f"{workdir}: training is finished (step {start}); evaluating only.")
            return state.prompts
        if is_own(config.dataset):
            say_once(look(dataset, config))
        # Only a run that takes steps writes these, so that they match the training of a finished
        # one.
        write_train_files(dataset, workdir)
        save_config(config, workdir)
        if start == plan.steps:
            return with_classifier(state, saver, stop, workdir)
        if start:
            say(f"{workdir}: resuming at step {start} of {plan.steps}.")
        say(_description(experiment, plan, state))

        frozen = experiment.frozen._replace(target=consistency_target(experiment))
        take_step = make_step(model, plan.optimizer, plan.step)
        state = distributed.replicate(state)
        schedule = distributed.replicate(plan.schedule.as_arrays())
        batches = train_batches(experiment, start, functools.partial(_to_devices, plan))
        unreadable: set[int] = set()
        stopping = ended = False
        speed, operations = Speed(), 0.0
        with (
            MetricWriter(workdir, start) as writer,
            Progress("train", plan.steps, start) as progress,
            tracing(workdir, profile, start, plan.steps) as trace_before,
        ):
            for step in range(start + 1, plan.steps + 1):
                trace_before(step, state)
                try:
                    with speed.waiting(state):
                        batch, rows = next(batches)
                except Exception:
                    if jax.process_count() > 1:
                        raise
                    saver.save(distributed.to_host(state))
                    checkpoints.wait()
                    if not stop:
                        raise
                    # A SIGTERM to the process group ends loader processes that have only just
                    # started. The images that they had are loaded again when the run resumes.
                    stopping = True
                    break
                speed.count(len(batch["label"]) * jax.process_count())
                unreadable.update(batch["index"][batch["weight"] == 0].tolist())
                # JAX returns before the devices have finished, so the next batches are loaded and
                # copied meanwhile. Reading the state waits for them: hence once an epoch.
                state = take_step(state, frozen, rows, schedule)
                progress.advance()
                if step % plan.steps_per_epoch == 0 or step == plan.steps:
                    totals, not_finite = distributed.to_host((state.totals, state.not_finite))
                    saver.check_finite(not_finite)
                    values = _epoch_values(plan, step, totals, not_finite, state.prompts)
                    operations = operations or jax.device_count() * flops.of(
                        take_step, state, frozen, rows, schedule
                    )
                    values |= speed.epoch(operations)
                    if validate:
                        values["val_accuracy"] = validate(state.prompts)
                        saver.keep_best(values, state.prompts)
                        speed.restart()
                    writer.write(step, values)
                    progress.report(_line(values, plan.epochs), f"loss {values['loss']:.3f}")
                    if callbacks:
                        asked = any([callback({**values}) for callback in callbacks])
                        ended = distributed.first_says(asked) and step < plan.steps
                        if ended:
                            say(f"a callback ended the training at step {step} of {plan.steps}.")
                            break
                # All hosts ask after every step, so they stop after the same one.
                stopping = stop.after(step) and step < plan.steps
                if stopping:
                    break
                if saver.is_due(step):
                    saver.save(distributed.to_host(state))
        state = distributed.to_host(state)
        saver.save(state, **{ENDED: ended})
        # Checkpoints are written in the background: only now is the last one whole.
        checkpoints.wait()
        if stopping:
            say(
                f"stopped at step {state.step} of {plan.steps} and saved: the same command resumes "
                "there."
            )
            raise Stopped
        _say_what_was_left_out(plan, len(unreadable), len(dataset.train), state.not_finite)
        if model.config.classifier:
            return with_classifier(state, saver, stop, workdir)
    if best := saver.best:
        say(
            f"the prompts of epoch {best.epoch} are kept, which get {100 * best.accuracy:.1f} % of "
            "the validation images right."
        )
        return best.prompts
    return state.prompts


def with_classifier(
    state: TrainState, saver: "Saver", stop: StopRequest, workdir: epath.Path
) -> Prompts:
    """Return the prompts of a state after the last epoch, with a trained classifier.

    A classifier that is stopped on the way is trained from the start again, with the same result.
    """
    experiment, plan = saver.experiment, saver.plan
    config, dataset = experiment.config, experiment.dataset
    say(
        f"Training the classifier {config.classifier.name} on {len(dataset.train)} images of "
        f"{len(dataset.classnames)} classes."
    )
    began, before = time.perf_counter(), int(state.step)
    batches = itertools.count(before + 1)

    def end_if_asked() -> None:
        if stop.after(next(batches)):
            say("stopped before the classifier was trained: the same command resumes there.")
            raise Stopped

    support, texts, s = encode_support(experiment, state.prompts, end_if_asked)
    encoded = time.perf_counter()
    trained = fit(config, support, texts, s)
    with MetricWriter(workdir, before) as writer:
        for steps, values in trained.epochs:
            values["epoch"] += _epoch(plan, before)
            writer.write(before + steps, values)
    views, images = support.views.shape[:2]
    say(
        f"{views} views of {images} images in {encoded - began:.1f} s, {steps} steps in "
        f"{time.perf_counter() - encoded:.1f} s: loss {values['loss']:.4f}  accuracy "
        f"{values['accuracy']:.3f}"
    )
    prompts = {**state.prompts, CLASSIFIER: trained.params}
    more = {CLASSIFIER_STEPS: steps, ENDED: before < plan.steps, "chosen": trained.chosen}
    saver.save(state._replace(prompts=prompts), **more)
    saver.checkpoints.wait()
    return prompts


def make_plan(config: ConfigDict, images: int) -> Plan:
    """Return the plan of a run on this number of images."""
    train = config.train
    per_host = -(-min(train.batch_size, images) // jax.process_count())
    step = StepConfig(
        alpha=config.loss.alpha,
        # A larger part than a device has images would be padded for nothing.
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
    experiment: Experiment, start: int, transfer: Callable[[loader.Batch], Any] | None = None
) -> Iterator[Any]:
    """Yield this host's batches from step `start` on, see `loader.train_batches`."""
    config, dataset = experiment.config, experiment.dataset
    loading = loader.TrainLoading(
        **shared_loading(experiment),
        examples=dataset.train,
        batch_size=config.train.batch_size,
        epochs=make_plan(config, len(dataset.train)).epochs,
        seed=config.seed,
        augment=config.train.augment,
        shift=config.train.shift,
        partial=config.train.keep_partial,
    )
    return loader.train_batches(loading, start, transfer)


def _to_devices(plan: Plan, batch: loader.Batch) -> tuple[loader.Batch, loader.Batch]:
    """Return a batch, and its rows on this host's devices."""
    devices, part = jax.local_device_count(), plan.step.microbatch or 1
    return batch, distributed.place(loader.shard(batch, plan.images_per_host, devices, part))


@dataclasses.dataclass
class Saver:
    """Saves the states of a run, and measures its time from here on.

    Attributes:
      experiment: What is trained.
      plan: Its numbers.
      checkpoints: Where the states go.
      record: Of the training, see `training_meta`.
      best: With train.keep=best, the best prompts so far.
      step: The step that was saved last, 0 for none.
    """

    experiment: Experiment
    plan: Plan
    checkpoints: Checkpoints
    record: Record
    best: Best | None
    step: int = 0

    def __post_init__(self) -> None:
        self._began = self._saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether to save after this step, by steps or by the clock.

        All hosts ask together, and the clock is that of host 0.
        """
        config = self.experiment.config.checkpoint
        if step % config.every_steps == 0:
            return True
        if not config.every_minutes or (jax.process_count() > 1 and step % STEPS_BETWEEN_CLOCKS):
            return False
        return distributed.first_says(time.monotonic() - self._saved_at > 60 * config.every_minutes)

    def save(self, state: TrainState, **more: Any) -> None:
        """Start to write a checkpoint of a state, unless its step is saved.

        Args:
          state: A tree of host arrays.
          more: Further entries of the metadata.
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
            "epoch": _epoch(plan, int(state.step)),
            "bad": [int(x) for x in state.not_finite],
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
        """Raise UserError naming the first step that was not finite, unless these are skipped."""
        steps, first = map(int, not_finite)
        if not steps or self.plan.step.skip:
            return
        self.checkpoints.wait()
        good = self.checkpoints.steps()
        last = (
            f"the last good checkpoint is of step {good[0]}" if good else "no checkpoint is saved"
        )
        batch = next(train_batches(self.experiment, first - 1))
        images = ", ".join(self.experiment.dataset.train[i].path for i in batch["index"])
        raise UserError(
            f"the loss, its gradient or the prompts are not finite at step {first}; {last} "
            f"({self.checkpoints.directory}). The images of the step: {images}. Check these, try a "
            "smaller train.visual_lr or dtype=float32, or skip such steps with "
            "--config.train.skip_nonfinite=True."
        )


def start_or_resume(
    experiment: Experiment,
    plan: Plan,
    checkpoints: Checkpoints,
    workdir: epath.Path,
    allow_changes: bool,
) -> tuple[TrainState, Saver]:
    """Return the state of the newest whole checkpoint, or a new one; and what saves later ones.

    A run that has started no longer needs the prompts of `init_from`.

    Raises:
      UserError: if the run cannot be resumed: it was trained on another CLIP, on other images, or
        with other epochs.
    """
    shapes = shapes_of(experiment.model)
    zeros: Prompts = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    averages = plan.schedule.average is not None
    new = new_state(experiment.model, plan.step, zeros, plan.optimizer, averages)
    keeps_best = experiment.config.train.keep == "best"
    found = checkpoints.resume()
    if found is None:
        new = new._replace(prompts=initial_prompts(experiment))
        best = Best(-1.0, 0, new.prompts) if keeps_best else None
        return new, Saver(experiment, plan, checkpoints, training_meta(experiment), best)
    saved, training = found
    step = saved.step - saved.meta.get(CLASSIFIER_STEPS, 0)
    _check_resumable(experiment, plan, saved, step, workdir, allow_changes)
    prompts = dict(saved.prompts)
    trained = {CLASSIFIER: prompts.pop(CLASSIFIER)} if CLASSIFIER in prompts else {}
    check_shapes(prompts, shapes, str(workdir))
    like = {**_training(new), **({"best": shapes} if keeps_best else {})}
    check_shapes(training, like, str(workdir))
    state = new._replace(
        step=np.int32(step),
        # More epochs change what the classifier is trained on.
        prompts=prompts if step < plan.steps else {**prompts, **trained},
        opt_state=state_from_saved(new.opt_state, training["momentum"]),
        totals=training["totals"],
        not_finite=NotFinite(*np.array(saved.meta["bad"], np.int32)),
        average=training.get("average"),
    )
    kept = saved.meta.get("best")
    best = Best(kept["accuracy"], kept["epoch"], training["best"]) if kept else None
    record = training_meta(experiment, saved._replace(step=step))
    return state, Saver(experiment, plan, checkpoints, record, best, step)


def _check_resumable(
    experiment: Experiment,
    plan: Plan,
    saved: Saved,
    step: int,
    workdir: epath.Path,
    allow_changes: bool,
) -> None:
    """Raise UserError if a run cannot be resumed from a checkpoint, of a step of the towers."""
    config, meta = experiment.config, saved.meta
    # The path of CLIP's weights may change, but not the weights.
    if other := other_clip(saved, experiment.pretrained):
        raise UserError(
            f"{workdir} was trained on {other} than {config.clip.weights}: give the one that it "
            "began with, or use another --workdir."
        )
    if list(experiment.dataset.classnames) != meta["classnames"]:
        raise UserError(
            f"{workdir} was trained on other class names than {config.dataset.name} has now: "
            "restore those that it began with, or use another --workdir."
        )
    check_same_images(experiment.dataset.train, workdir, meta, allow_changes)
    averages = plan.schedule.average is not None
    if averages and meta["epochs"] != plan.epochs:
        raise UserError(
            f"{workdir} averages its prompts over {meta['epochs']} epochs, with weights fixed at "
            f"its start, so it cannot be extended to {plan.epochs}: use another --workdir."
        )
    before, now = meta["steps_per_epoch"], plan.steps_per_epoch
    if before != now:
        change = (
            f"{workdir}: an epoch had {before} steps and has {now} now, so its {step} steps "
            f"count as {step / now:.1f} epochs instead of {step / before:.1f}"
        )
        if averages or step >= plan.steps:
            why = "it averages its epochs" if averages else "it would count as finished"
            raise UserError(
                f"{change}, and {why}: use the batch size and the images that it began with, or "
                "another --workdir."
            )
        say(f"{change}.")
    if step > plan.steps:
        raise UserError(
            f"{workdir} was trained for {step} steps, but these settings end at step "
            f"{plan.steps}: give at least as many epochs, or use another --workdir."
        )
    if step < plan.steps and meta.get("best", {}).get("final"):
        raise UserError(
            f"{workdir} has ended with the prompts of its best epoch (train.keep=best), so it "
            "cannot be extended: use another --workdir."
        )


def _training(state: TrainState) -> dict[str, Prompts | Totals]:
    """Return the parts of a state that a checkpoint saves, except the prompts."""
    average = {} if state.average is None else {"average": state.average}
    return {"momentum": state_to_save(state.opt_state), "totals": state.totals, **average}


def _epoch(plan: Plan, step: int) -> int:
    """Return how many epochs have ended; the last one ends with the run."""
    return plan.epochs if step == plan.steps else step // plan.steps_per_epoch


def _description(experiment: Experiment, plan: Plan, state: TrainState) -> str:
    dataset, model = experiment.dataset, experiment.model
    parameters = sum(x.size for x in jax.tree.leaves(state.prompts))
    devices, hosts = jax.device_count(), jax.process_count()
    where = f"{devices} {jax.default_backend()} device{'s' if devices > 1 else ''}"
    where += f" of {hosts} hosts" if hosts > 1 else ""
    return (
        f"Training {model.config.method} on {len(dataset.train)} images of "
        f"{len(dataset.classnames)} classes: {plan.epochs} epochs of "
        f"{plan.steps_per_epoch} steps, {parameters:,} parameters, {where}, "
        f"{jnp.dtype(model.dtype).name}."
    )


def _epoch_values(
    plan: Plan, step: int, totals: Totals, not_finite: NotFinite, prompts: Prompts
) -> dict[str, float]:
    """Return the means over the epoch that ends with `step`, and the learning rates of its parts.

    Raises:
      UserError: if no image counts.
    """
    sums = {name: float(x) for name, x in totals.items()}
    if not sums["images"] and not not_finite.steps:
        raise UserError(
            "none of the training images could be read: check dataset.root and the image files."
        )
    rates = learning_rates(plan.schedule, step - 1)
    learned = set(map(rate_of, prompts))
    images = sums["images"] or math.nan  # no image counts if all steps were left out
    losses = {name: x / images for name, x in sums.items() if name.startswith("loss_")}
    return {
        "epoch": _epoch(plan, step),
        "loss": sum(losses.values()),
        "accuracy": sums["hits"] / images,
        **{f"{name}_lr": float(rate) for name, rate in rates.items() if name in learned},
        **(losses if len(losses) > 1 else {}),
    }


def _line(values: dict[str, float], epochs: int) -> str:
    names = ("visual", "text", "weights")
    rates = [f"{name} {values[key]:.2e}" for name in names if (key := f"{name}_lr") in values]
    validated = f"validation {values['val_accuracy']:.3f}  " if "val_accuracy" in values else ""
    share = f" ({values['peak_share']:.0%} of peak)" if "peak_share" in values else ""
    return (
        f"epoch {values['epoch']:.0f}/{epochs}  loss {values['loss']:.4f}  "
        f"accuracy {values['accuracy']:.3f}  {validated}lr {' '.join(rates)}  "
        f"{values['images_per_s']:.0f} images/s  {values['tflop_per_s']:.3g} TFLOP/s{share}  "
        f"waiting {values['wait_share']:.0%}"
    )


def _say_what_was_left_out(plan: Plan, unreadable: int, images: int, not_finite: NotFinite) -> None:
    if count := distributed.sum_over_hosts(unreadable):
        say(f"{count} of {images} training images could not be read and were left out.")
    if not_finite.steps:
        say(
            f"{not_finite.steps} of {plan.steps} steps were not finite and were left out, the "
            f"first is step {not_finite.first}."
        )
