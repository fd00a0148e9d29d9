"""Training: from a new or a saved state to the last epoch, and then of a classifier."""

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
from dpt_jax.data.dataset import check_readable, check_trainable
from dpt_jax.data.look import is_own, look
from dpt_jax.errors import UserError
from dpt_jax.logging import Progress, say, say_once
from dpt_jax.methods import CLASSIFIER, METHODS, WEIGHTS
from dpt_jax.prompts import Prompts
from dpt_jax.training.checkpoints import Checkpoints, digest
from dpt_jax.training.classifier import encode_support, fit
from dpt_jax.training.initial_prompts import initial_prompts, other_clip, shapes_of
from dpt_jax.training.metrics import MetricWriter, Speed, tracing
from dpt_jax.training.optimizer import (
    Schedule,
    epoch_weights,
    learning_rates,
    make_optimizer,
    run_length,
    state_from_saved,
    state_to_save,
)
from dpt_jax.training.process import Stopped, StopRequest, locked
from dpt_jax.training.record import Record, check_same_images, training_meta, write_train_files
from dpt_jax.training.setup import Experiment, shared_loading
from dpt_jax.training.step import (
    NotFinite,
    StepConfig,
    Totals,
    TrainState,
    make_step,
    new_state,
)
from dpt_jax.training.texts import consistency_target
from dpt_jax.training.workdir import save_config

# Keys of a checkpoint's metadata: epochs of the average, and steps of an epoch.
AVERAGED, STEPS_PER_EPOCH = "averaged", "steps_per_epoch"
# Whether a callback has ended the training.
ENDED = "ended"
# The number of steps that trained the classifier.
CLASSIFIER_STEPS = "classifier_steps"
# With train.keep=best: accuracy and epoch of the best prompts; whether this checkpoint has them.
BEST = "best"
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
    def epochs(self) -> int:
        """Return the number of epochs; the last one may be incomplete."""
        return -(-self.steps // int(self.schedule.steps_per_epoch))


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
    steps_per_epoch = int(plan.schedule.steps_per_epoch)
    with (
        locked(workdir),
        StopRequest() as stop,
        Checkpoints(workdir, config.checkpoint.keep, create=True) as checkpoints,
    ):
        state, record, best = restore(experiment, checkpoints, plan, workdir, allow_changes)
        distributed.check_same(lambda: {"initial prompt (init_from)": digest(state.prompts)})
        start = int(state.step)
        if start > plan.steps:
            raise UserError(
                f"{workdir} was trained for {start} steps, but these settings end at step "
                f"{plan.steps}: give at least as many epochs, or use another --workdir."
            )
        if start < plan.steps:
            state.prompts.pop(CLASSIFIER, None)
        elif bool(model.config.classifier) == (CLASSIFIER in state.prompts):
            say(f"{workdir}: training is finished (step {start}); evaluating only.")
            return state.prompts
        if is_own(config.dataset):
            say_once(look(dataset, config))
        # Only a run that takes steps writes these, so that they match the training of a finished
        # one.
        write_train_files(dataset, workdir)
        save_config(config, workdir)
        if start == plan.steps:
            return with_classifier(experiment, checkpoints, plan, state, record, workdir, stop)
        if start:
            say(f"{workdir}: resuming at step {start} of {plan.steps}.")
        say(_description(experiment, plan, state))

        frozen = experiment.frozen._replace(target=consistency_target(experiment))
        take_step = make_step(model, plan.optimizer, plan.step)
        state = distributed.replicate(state)
        schedule = distributed.replicate(plan.schedule.as_arrays())

        def to_devices(batch: loader.Batch) -> tuple[loader.Batch, loader.Batch]:
            devices, part = jax.local_device_count(), plan.step.microbatch or 1
            return batch, distributed.place(
                loader.shard(batch, plan.images_per_host, devices, part)
            )

        batches = train_batches(experiment, start, to_devices)
        unreadable: set[int] = set()
        speed = Speed(experiment, config.loss.guidance_epochs)
        saved, began = start, time.monotonic()
        saved_at = began
        with (
            MetricWriter(workdir, start) as writer,
            Progress("train", plan.steps, start) as progress,
            tracing(workdir, profile, start, plan.steps) as trace_before,
        ):

            def save(step: int, ended: bool = False) -> None:
                check_finite(experiment, checkpoints, plan, state)
                host = distributed.to_host(state)
                meta = {**record, **_progress(plan, host), ENDED: ended}
                meta["seconds"] = record["seconds"] + time.monotonic() - began
                prompts, training = host.prompts, _training(host)
                if best:
                    training["best"] = best.prompts
                    final = ended or step == plan.steps
                    meta[BEST] = {"accuracy": best.accuracy, "epoch": best.epoch, "final": final}
                    prompts = best.prompts if final else prompts
                checkpoints.save(step, prompts, meta, training)

            for step in range(start + 1, plan.steps + 1):
                trace_before(step, state)
                try:
                    with speed.waiting(state):
                        batch, rows = next(batches)
                except Exception:
                    if jax.process_count() > 1:
                        raise
                    if step - 1 > saved:
                        save(step - 1)
                        checkpoints.wait()
                    if not stop:
                        raise
                    # A SIGTERM to the process group ends loader processes that have only just
                    # started. The images that they had are loaded again when the run resumes.
                    raise _stopped(step - 1, plan) from None
                speed.count(len(batch["label"]) * jax.process_count())
                unreadable.update(batch["index"][batch["weight"] == 0].tolist())
                # JAX returns before the devices have finished, so the next batches are loaded and
                # copied meanwhile. Reading the state waits for them: hence once an epoch.
                state = take_step(state, frozen, rows, schedule)
                progress.advance()
                if step % steps_per_epoch == 0 or step == plan.steps:
                    check_finite(experiment, checkpoints, plan, state)
                    values = _epoch_values(state, plan, step)
                    values |= speed.epoch(int(values["epoch"]))
                    if validate:
                        values["val_accuracy"] = validate(state.prompts)
                        if best and values["val_accuracy"] > best.accuracy:
                            prompts = distributed.to_host(state.prompts)
                            best = Best(values["val_accuracy"], int(values["epoch"]), prompts)
                        speed.restart()
                    writer.write(step, values)
                    line = _line(values, plan.epochs)
                    progress.report(line, f"loss {values['loss']:.3f}")
                    if callbacks:
                        ended = any([callback({**values}) for callback in callbacks])
                        if distributed.first_says(ended) and step < plan.steps:
                            save(step, ended=True)
                            say(f"a callback ended the training at step {step} of {plan.steps}.")
                            break
                # All hosts ask after every step, so they stop after the same one.
                stopping = stop.after(step) and step < plan.steps
                if stopping or save_is_due(config.checkpoint, step, plan.steps, saved_at):
                    save(step)
                    saved, saved_at = step, time.monotonic()
                if stopping:
                    checkpoints.wait()
                    raise _stopped(step, plan)
        # Checkpoints are written in the background: only now is the last one whole.
        checkpoints.wait()
        host: TrainState = distributed.to_host(state)
        prompts = host.prompts
        record["seconds"] += time.monotonic() - began
        if model.config.classifier:
            prompts = with_classifier(experiment, checkpoints, plan, host, record, workdir, stop)
    if count := distributed.sum_over_hosts(len(unreadable)):
        say(f"{count} of {len(dataset.train)} training images could not be read and were left out.")
    if host.not_finite.steps:
        say(
            f"{host.not_finite.steps} of {plan.steps} steps were not finite and were left out, "
            f"the first is step {host.not_finite.first}."
        )
    if best:
        prompts = best.prompts
        say(
            f"the prompts of epoch {best.epoch} are kept, which get {100 * best.accuracy:.1f} % of "
            "the validation images right."
        )
    return prompts


def with_classifier(
    experiment: Experiment,
    checkpoints: Checkpoints,
    plan: Plan,
    state: TrainState,
    record: Record,
    workdir: epath.Path,
    stop: StopRequest,
) -> Prompts:
    """Return the prompts of a state after the last epoch, with a trained classifier.

    A classifier that is stopped on the way is trained from the start again, with the same result.
    """
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
    trained, epochs = fit(experiment.config, support, texts, s)
    progress = _progress(plan, state)
    with MetricWriter(workdir, before) as writer:
        for steps, values in epochs:
            values["epoch"] += _epoch(plan, before)
            writer.write(before + steps, values)
    prompts = {**state.prompts, CLASSIFIER: trained}
    meta = {**record, **progress, CLASSIFIER_STEPS: steps, ENDED: before < plan.steps}
    meta["seconds"] = record["seconds"] + time.perf_counter() - began
    checkpoints.save(before + steps, prompts, meta, _training(state))
    checkpoints.wait()
    views, images = support.views.shape[:2]
    say(
        f"{views} views of {images} images in {encoded - began:.1f} s, {steps} steps in "
        f"{time.perf_counter() - encoded:.1f} s: loss {values['loss']:.4f}  accuracy "
        f"{values['accuracy']:.3f}"
    )
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


def restore(
    experiment: Experiment,
    checkpoints: Checkpoints,
    plan: Plan,
    workdir: epath.Path,
    allow_changes: bool,
) -> tuple[TrainState, Record, Best | None]:
    """Return the state of the newest whole checkpoint, or a new one, and the training's record.

    With train.keep=best, also the best prompts so far.
    A run that has started no longer needs the prompts of `init_from`.

    Raises:
      UserError: if the run cannot be resumed: it was trained on another CLIP, on other images, or
        with other epochs.
    """
    shapes = shapes_of(experiment.model)
    like: Prompts = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    weights = plan.schedule.average
    new = new_state(experiment.model, plan.step, like, plan.optimizer, weights is not None)
    keeps_best = experiment.config.train.keep == "best"
    saved_with = {**_training(new), **({"best": like} if keeps_best else {})}
    found = checkpoints.resume(like, saved_with, apart=CLASSIFIER)
    if found is None:
        prompts = initial_prompts(experiment)
        best = Best(-1.0, 0, prompts) if keeps_best else None
        return new._replace(prompts=prompts), training_meta(experiment), best
    saved, training = found
    saved = saved._replace(step=saved.step - saved.meta.get(CLASSIFIER_STEPS, 0))
    # The path of CLIP's weights may change, but not the weights.
    if other := other_clip(saved, experiment.pretrained):
        raise UserError(
            f"{workdir} was trained on {other} than {experiment.config.clip.weights}: give the one "
            "that it began with, or use another --workdir."
        )
    if weights is not None and saved.meta.get(AVERAGED) != len(weights):
        raise UserError(
            f"{workdir} averages its prompts over {saved.meta.get(AVERAGED)} epochs, with weights "
            f"fixed at its start, so it cannot be extended to {len(weights)}: use another "
            "--workdir."
        )
    if list(experiment.dataset.classnames) != saved.meta["classnames"]:
        raise UserError(
            f"{workdir} was trained on other class names than {experiment.config.dataset.name} has "
            "now: restore those that it began with, or use another --workdir."
        )
    check_same_images(experiment.dataset.train, workdir, saved.meta, allow_changes)
    before, now = saved.meta[STEPS_PER_EPOCH], plan.schedule.steps_per_epoch
    if before != now:
        change = (
            f"{workdir}: an epoch had {before} steps and has {now} now, so its {saved.step} steps "
            f"count as {saved.step / now:.1f} epochs instead of {saved.step / before:.1f}"
        )
        if weights is not None or saved.step >= plan.steps:
            why = "it averages its epochs" if weights is not None else "it would count as finished"
            raise UserError(
                f"{change}, and {why}: use the batch size and the images that it began with, or "
                "another --workdir."
            )
        say(f"{change}.")
    state = new._replace(
        step=np.int32(saved.step),
        prompts=saved.prompts,
        opt_state=state_from_saved(new.opt_state, training["momentum"]),
        totals=training["totals"],
        not_finite=NotFinite(*np.array(saved.meta.get("bad", (0, 0)), np.int32)),
        average=training.get("average"),
    )
    best = None
    if keeps_best:
        kept = saved.meta[BEST]
        if kept["final"] and saved.step < plan.steps:
            raise UserError(
                f"{workdir} has ended with the prompts of its best epoch (train.keep=best), so it "
                "cannot be extended: use another --workdir."
            )
        best = Best(kept["accuracy"], kept["epoch"], training["best"])
    return state, training_meta(experiment, saved), best


def save_is_due(config: ConfigDict, step: int, last: int, saved_at: float) -> bool:
    """Return whether to save after this step: by steps, by the clock, and at the end.

    All hosts ask together, and the clock is that of host 0.
    """
    if step % config.every_steps == 0 or step == last:
        return True
    if not config.every_minutes or (jax.process_count() > 1 and step % STEPS_BETWEEN_CLOCKS):
        return False
    return distributed.first_says(time.monotonic() - saved_at > 60 * config.every_minutes)


def check_finite(
    experiment: Experiment, checkpoints: Checkpoints, plan: Plan, state: TrainState
) -> None:
    """Raise UserError naming the first step that was not finite, unless such steps are skipped."""
    steps, first = map(int, distributed.to_host(state.not_finite))
    if not steps or plan.step.skip:
        return
    checkpoints.wait()
    good = checkpoints.steps()
    last = f"the last good checkpoint is of step {good[0]}" if good else "no checkpoint before it"
    batch = next(train_batches(experiment, first - 1))
    images = ", ".join(experiment.dataset.train[i].path for i in batch["index"])
    raise UserError(
        f"the loss, its gradient or the prompts are not finite at step {first}; {last} "
        f"({checkpoints.directory}). The images of the step: {images}. Check these, try a smaller "
        "train.visual_lr or dtype=float32, or skip such steps with "
        "--config.train.skip_nonfinite=True."
    )


def _progress(plan: Plan, state: TrainState) -> dict[str, object]:
    """Return the metadata of a checkpoint, except the training's record."""
    averaged = {} if plan.schedule.average is None else {AVERAGED: len(plan.schedule.average)}
    return {
        STEPS_PER_EPOCH: plan.schedule.steps_per_epoch,
        **averaged,
        "epoch": _epoch(plan, int(state.step)),
        "bad": [int(x) for x in state.not_finite],
    }


def _epoch(plan: Plan, step: int) -> int:
    """Return how many epochs have ended; the last one ends with the run."""
    return plan.epochs if step == plan.steps else step // int(plan.schedule.steps_per_epoch)


def _training(state: TrainState) -> dict[str, Prompts | Totals]:
    """Return the parts of a state that a checkpoint saves, except the prompts."""
    average = {} if state.average is None else {"average": state.average}
    return {"momentum": state_to_save(state.opt_state), "totals": state.totals, **average}


def _stopped(step: int, plan: Plan) -> Stopped:
    say(f"stopped at step {step} of {plan.steps} and saved: the same command resumes there.")
    return Stopped()


def _description(experiment: Experiment, plan: Plan, state: TrainState) -> str:
    dataset, model = experiment.dataset, experiment.model
    parameters = sum(x.size for x in jax.tree.leaves(state.prompts))
    devices, hosts = jax.device_count(), jax.process_count()
    where = f"{devices} {jax.default_backend()} device{'s' if devices > 1 else ''}"
    where += f" of {hosts} hosts" if hosts > 1 else ""
    return (
        f"Training {model.config.method} on {len(dataset.train)} images of "
        f"{len(dataset.classnames)} classes: {plan.epochs} epochs of "
        f"{plan.schedule.steps_per_epoch} steps, {parameters:,} parameters, {where}, "
        f"{jnp.dtype(model.dtype).name}."
    )


def _epoch_values(state: TrainState, plan: Plan, step: int) -> dict[str, float]:
    """Return the means over the epoch that ends with `step`, and its learning rates."""
    totals = {name: float(x) for name, x in distributed.to_host(state.totals).items()}
    if not totals["images"] and not distributed.to_host(state.not_finite.steps):
        raise UserError(
            "none of the training images could be read: check dataset.root and the image files."
        )
    rates = learning_rates(plan.schedule, step - 1)
    images = totals["images"] or math.nan  # no image counts if all steps were left out
    losses = {name: x / images for name, x in totals.items() if name.startswith("loss_")}
    return {
        "epoch": _epoch(plan, step),
        "loss": sum(losses.values()),
        "accuracy": totals["hits"] / images,
        **{f"{name}_lr": float(rate) for name, rate in rates.items()},
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
