"""Training: the loop around the step, from a new or a saved state to the last epoch."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from dpt_jax import distributed, settings
from dpt_jax.data import loader
from dpt_jax.data.dataset import check_readable
from dpt_jax.errors import UserError
from dpt_jax.io import make_folder
from dpt_jax.logging import Progress, say
from dpt_jax.prompts import Prompts
from dpt_jax.runtime import failures
from dpt_jax.storage.lock import locked
from dpt_jax.training import train_files
from dpt_jax.training.checkpoints import Checkpoints, Saved
from dpt_jax.training.digests import digest
from dpt_jax.training.fingerprint import Record, training_meta
from dpt_jax.training.initial_prompts import initial_prompts, other_clip
from dpt_jax.training.keeper import Keeper
from dpt_jax.training.metrics import MetricWriter
from dpt_jax.training.optimizer import make_optimizer, state_from_saved
from dpt_jax.training.plan import Plan, batches_of, make_plan
from dpt_jax.training.schedule import Schedule, learning_rates
from dpt_jax.training.setup import Experiment
from dpt_jax.training.signals import StopRequest
from dpt_jax.training.step import NotFinite, Totals, TrainState, make_step, new_state
from dpt_jax.training.texts import held_texts

# In the metadata of a checkpoint: over how many epochs, and how many steps an epoch has.
AVERAGED, STEPS_PER_EPOCH = "averaged", "steps_per_epoch"


def train(experiment: Experiment, workdir: epath.Path, allow_changes: bool = False) -> Prompts:
    """Train to the last epoch, from the newest checkpoint if there is one; return the prompts.

    Write checkpoints, metrics and the list of training images to the workdir.
    Raise UserError if there is nothing to train on, another process trains in
    the workdir, a run goes on with other images (unless `allow_changes`), a
    checkpoint cannot be written or a step is not finite. Raise Stopped if a
    signal asks for it.
    """
    config, dataset = experiment.config, experiment.dataset
    train_files.check_trainable(dataset, config.dataset.name)
    if config.dataset.on_error == "skip":
        check_readable(dataset)
    plan = make_plan(config, len(dataset.train))
    optimizer = make_optimizer()
    batches_from = batches_of(experiment)

    def images_of(step: int) -> list[str]:
        return [dataset.train[i].path for i in next(batches_from(step - 1))["index"]]

    with (
        _locked_for_all(workdir) as check_lock,
        StopRequest() as stop,
        Checkpoints(workdir, config.checkpoint.keep, create=True) as checkpoints,
    ):
        failures.agree()
        state, about = begin(experiment, checkpoints, optimizer, plan, workdir, allow_changes)
        failures.agree()
        distributed.check_same(lambda: {"prompt to start from (init_from)": digest(state.prompts)})
        start = int(state.step)
        if start > plan.total:
            raise UserError(
                f"{workdir} was trained for {start} steps, but these settings end at step "
                f"{plan.total}: give at least as many epochs, or use another --workdir."
            )
        if start == plan.total:
            say(f"{workdir}: training is finished (step {start}); evaluating only.")
            return state.prompts
        # Only of a run that takes steps: what is finished stays what it was trained as.
        with failures.fatal():
            train_files.write(dataset.train, workdir)
            settings.save(config, workdir)
        _say_start(experiment, plan, state, workdir)

        about[STEPS_PER_EPOCH] = plan.steps_per_epoch
        experiment = experiment._replace(
            frozen=experiment.frozen._replace(held=held_texts(experiment))
        )
        if plan.schedule.average:
            about[AVERAGED] = len(plan.schedule.average)
        with MetricWriter(workdir, start) as writer:
            # A run that goes on from a checkpoint needs the metrics of the steps before it.
            first = (check_lock, writer.settle)
            keeper = Keeper(checkpoints, first, about, plan, config.checkpoint, images_of)
            batches = batches_from(start)
            replicated = _steps(experiment, plan, optimizer, state, batches, keeper, stop, writer)
        # Checkpoints are written in the background: only now is the last one known to be whole.
        with failures.fatal():
            checkpoints.wait()
        host: TrainState = distributed.to_host(replicated)
        if host.not_finite.steps:
            say(
                f"{host.not_finite.steps} of {plan.total} steps were not finite and were left out, "
                f"the first is step {host.not_finite.first}."
            )
        return host.prompts


@contextlib.contextmanager
def _locked_for_all(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Make the workdir and keep a second training out of it; all hosts wait until it is so."""
    if distributed.is_first():
        make_folder(workdir, "--workdir")
    with locked(workdir) as check:
        failures.agree()
        yield check


def _steps(
    experiment: Experiment,
    plan: Plan,
    optimizer: optax.GradientTransformationExtraArgs,
    state: TrainState,
    batches: Iterator[loader.Batch],
    keeper: Keeper,
    stop: StopRequest,
    writer: MetricWriter,
) -> TrainState:
    """Take all steps from `state` on; return the last state, on the devices."""
    take_step = make_step(experiment.model, optimizer, plan.step)
    start, hosts, local = int(state.step), jax.process_count(), jax.local_device_count()
    replicated: TrainState = distributed.replicate(state)
    schedule: Schedule = distributed.replicate(plan.schedule.as_arrays())
    unreadable: set[int] = set()
    nothing = loader.no_images(experiment.model.clip.image_size)
    failed: Exception | None = None  # what has kept this host from loading its images
    with Progress("train", plan.total, start) as progress:
        since, images = time.perf_counter(), 0
        for step in range(start + 1, plan.total + 1):
            try:
                batch = next(batches) if failed is None else nothing
            except Exception as error:
                # A SIGTERM to all processes ends those of the loader too. The batches that they
                # had are loaded again when the run goes on.
                if stop and hosts == 1:
                    keeper.stop(step - 1, replicated)
                # The other hosts need this one until they agree that the run has failed.
                failures.hold(error)
                batch, failed = nothing, error
            images += len(batch["label"]) * hosts
            unreadable.update(batch["index"][batch["weight"] == 0].tolist())
            rows = loader.shard(batch, plan.images_per_host, local, plan.step.microbatch or 1)
            # JAX returns before the devices are done, so that the next batch is loaded meanwhile.
            # Whatever reads the state waits for them: hence once an epoch and no more often.
            replicated = take_step(replicated, experiment.frozen, rows, schedule)
            progress.advance()
            # All hosts ask after every step, so that they stop after the same one.
            stopping = stop.after(step) and step < plan.total
            # Nothing is saved or reported of steps that a host took without its images.
            if stopping or keeper.may_save(step) or step % plan.steps_per_epoch == 0:
                failures.agree(failed)
            if step % plan.steps_per_epoch == 0:
                keeper.check(replicated)
                values = _epoch_values(replicated, plan.schedule, step)
                values["images_per_s"] = images / (time.perf_counter() - since)
                since, images = time.perf_counter(), 0
                with failures.fatal():
                    writer.write(step, values)
                line = _line(values, experiment.config.train.epochs)
                progress.report(line, f"loss {values['loss']:.3f}")
            if stopping:
                keeper.stop(step, replicated)
            if keeper.due(step):
                keeper.save(step, replicated)
    if left_out := distributed.sum_over_hosts(len(unreadable)):
        say(
            f"{left_out} of {len(experiment.dataset.train)} training images could not be read "
            "and were left out."
        )
    return replicated


def begin(
    experiment: Experiment,
    checkpoints: Checkpoints,
    optimizer: optax.GradientTransformationExtraArgs,
    plan: Plan,
    workdir: epath.Path,
    allow_changes: bool = False,
) -> tuple[TrainState, Record]:
    """Return the state with which a run resumes, on the host, and the record of the training.

    The state is that of the newest whole checkpoint, or a new one.

    New prompts are made for a new run alone: one that has started no longer needs what
    `init_from` names. Raise UserError if the run was trained on another CLIP or on other images,
    or in epochs of other steps or number than it can go on with.
    """
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0))
    like: Prompts = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    totals = np.zeros(len(Totals._fields), np.float32)
    training_like = {"momentum": like, "totals": totals}
    weights = plan.schedule.average
    if weights:
        training_like["average"] = like
    found = checkpoints.resume(like, training_like)
    if found is None:
        fresh = new_state(initial_prompts(experiment), optimizer, average=bool(weights))
        return fresh, training_meta(experiment)
    saved, training = found
    # Where CLIP's weights lie may change, but not which they are.
    if other := other_clip(saved, experiment):
        raise UserError(
            f"{workdir} was trained on {other} than {experiment.config.clip.weights}: go on with "
            "the one that it began with, or use another --workdir."
        )
    if weights and saved.meta.get(AVERAGED) != len(weights):
        raise UserError(
            f"{workdir} averages its prompts over {saved.meta.get(AVERAGED)} epochs, by weights "
            f"that it began with, so it cannot go on to {len(weights)}: use another --workdir."
        )
    if list(experiment.dataset.classnames) != saved.meta["classnames"]:
        raise UserError(
            f"{workdir} was trained on other class names than {experiment.config.dataset.name} has "
            "now: give it those that it began with, or use another --workdir."
        )
    train_files.check_same_images(experiment.dataset.train, workdir, saved.meta, allow_changes)
    _check_epochs(saved, plan, workdir)
    state = TrainState(
        np.int32(saved.step),
        saved.prompts,
        state_from_saved(optimizer, saved.prompts, training["momentum"]),
        Totals(*training["totals"]),
        NotFinite(*np.array(saved.meta.get("bad", (0, 0)), np.int32)),
        training.get("average"),
    )
    return state, training_meta(experiment, saved)


def _check_epochs(saved: Saved, plan: Plan, workdir: epath.Path) -> None:
    """Say where the steps of a run count as another number of epochs than they were.

    Raise UserError where that would end the run too early, or some epochs would not be averaged.
    """
    now = plan.steps_per_epoch
    before = saved.meta.get(STEPS_PER_EPOCH, now)  # older versions do not say
    if before == now:
        return
    change = (
        f"{workdir}: an epoch had {before} steps and has {now} now, so that its {saved.step} steps "
        f"count as {saved.step / now:.1f} epochs instead of {saved.step / before:.1f}"
    )
    if plan.schedule.average or saved.step >= plan.total:
        why = "it averages its epochs" if plan.schedule.average else "it would count as finished"
        raise UserError(
            f"{change}, and {why}: use the batch size and the images that it began with, or "
            "another --workdir."
        )
    say(f"{change}.")


def _say_start(experiment: Experiment, plan: Plan, state: TrainState, workdir: epath.Path) -> None:
    dataset, model = experiment.dataset, experiment.model
    if state.step:
        say(f"{workdir}: going on at step {state.step} of {plan.total}.")
    parameters = sum(x.size for x in jax.tree.leaves(state.prompts))
    say(
        f"Training {model.prompts.method} on {len(dataset.train)} images of "
        f"{len(dataset.classnames)} classes: {experiment.config.train.epochs} epochs of "
        f"{plan.steps_per_epoch} steps, {parameters:,} parameters, {_devices_in_words()}, "
        f"{jnp.dtype(model.dtype).name}."
    )


def _devices_in_words() -> str:
    count, hosts = jax.device_count(), jax.process_count()
    words = f"{count} {jax.default_backend()} device{'s' if count > 1 else ''}"
    return f"{words} of {hosts} hosts" if hosts > 1 else words


def _epoch_values(replicated: TrainState, schedule: Schedule, step: int) -> dict[str, float]:
    """Return the means over the epoch that ends with `step`, and its learning rates."""
    totals = Totals(*map(float, distributed.to_host(replicated.totals)))
    if not totals.images and not distributed.to_host(replicated.not_finite.steps):
        raise UserError(
            "none of the training images could be read: "
            "check dataset.root, and where the images are."
        )
    rates = learning_rates(schedule, step - 1)
    images = totals.images or math.nan  # no image counts if all steps of the epoch were left out
    return {
        "epoch": step // schedule.steps_per_epoch,
        "loss": totals.loss / images,
        "accuracy": totals.hits / images,
        "visual_lr": float(rates["visual"]),
        "text_lr": float(rates["text"]),
    }


def _line(values: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {values['epoch']:.0f}/{epochs}  loss {values['loss']:.4f}  "
        f"accuracy {values['accuracy']:.3f}  lr visual {values['visual_lr']:.2e} "
        f"text {values['text_lr']:.2e}  {values['images_per_s']:.0f} images/s"
    )
