"""The training loop: from a new or saved state to the last epoch, then the classifier."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from etils import epath

from dpt_jax import distributed
from dpt_jax.data.dataset import check_images, check_trainable
from dpt_jax.errors import UserError
from dpt_jax.logging import Progress, say
from dpt_jax.methods import CLASSIFIER
from dpt_jax.prompts import Prompts
from dpt_jax.training.checkpoints import Checkpoints, digest
from dpt_jax.training.classifier import with_classifier
from dpt_jax.training.metrics import Speed, count_operations, metric_writer, tracing
from dpt_jax.training.optimizer import learning_rates, rate_of
from dpt_jax.training.setup import Experiment, consistency_target
from dpt_jax.training.state import (
    ENDED,
    Plan,
    Stopped,
    StopRequest,
    make_plan,
    start_or_resume,
    train_batches,
)
from dpt_jax.training.step import NotFinite, Totals, make_step
from dpt_jax.training.workdir import locked, save_config, write_train_files

# From replicated prompts to their accuracy on the validation images.
Validate = Callable[[Prompts], float]
# Called with the metrics of an epoch; training ends if it returns true.
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

    A classifier is trained after the last epoch of the other parts. The workdir gets checkpoints,
    metrics and the list of training images.

    Args:
      allow_changes: whether a resumed run may train on other images.
      callbacks: called after each epoch, in this order.
      profile: number of steps to trace.
      validate: called after each epoch, if there are validation images.

    Raises:
      UserError: if the run cannot start, resume or write, or a step is not finite.
      Stopped: after a signal, once the state is saved.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    check_trainable(dataset, config)
    if config.train.keep == "best" and not validate:
        raise UserError(
            f"train.keep=best needs validation images, but {config.dataset.name} has none: add a "
            "folder val/ (or in Python, `validation`), or use train.keep=last."
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
        check_images(dataset, config)
        # A finished run does not write these, so that they match its training.
        write_train_files(dataset, workdir)
        save_config(config, workdir)
        if start == plan.steps:
            return with_classifier(state, saver, stop, workdir)
        if start:
            say(f"{workdir}: resuming at step {start} of {plan.steps}.")
        devices, hosts = jax.device_count(), jax.process_count()
        where = f"{devices} {jax.default_backend()} device{'s' if devices > 1 else ''}"
        where += f" of {hosts} hosts" if hosts > 1 else ""
        parameters = sum(x.size for x in jax.tree.leaves(state.prompts))
        say(
            f"Training {model.config.method} on {len(dataset.train)} images of "
            f"{len(dataset.classnames)} classes: {plan.epochs} epochs of "
            f"{plan.steps_per_epoch} steps, {parameters:,} parameters, {where}, "
            f"{jnp.dtype(model.dtype).name}."
        )

        clip = experiment.pretrained.params
        texts = experiment.texts._replace(target=consistency_target(experiment))
        take_step = make_step(model, plan.step)
        state = distributed.replicate(state)
        schedule = distributed.replicate(plan.schedule.as_arrays())
        batches = train_batches(experiment, plan, start)
        unreadable: set[int] = set()
        stopping = ended = False
        speed, operations = Speed(), 0.0
        with (
            metric_writer(workdir, start) as write,
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
                    # started. Their images are loaded again when the run resumes.
                    stopping = True
                    break
                speed.count(len(batch["label"]) * jax.process_count())
                unreadable.update(batch["index"][batch["weight"] == 0].tolist())
                # JAX dispatches asynchronously: the next batches are loaded and copied meanwhile.
                # Reading the state blocks, so that is done once per epoch.
                state = take_step(state, clip, texts, rows, schedule)
                progress.advance()
                if step % plan.steps_per_epoch == 0 or step == plan.steps:
                    totals, not_finite = distributed.to_host((state.totals, state.not_finite))
                    saver.check_finite(not_finite)
                    values = _epoch_values(plan, step, totals, not_finite, state.prompts)
                    operations = operations or jax.device_count() * count_operations(
                        take_step, state, clip, texts, rows, schedule
                    )
                    values |= speed.epoch(operations)
                    if validate:
                        values["val_accuracy"] = validate(state.prompts)
                        saver.keep_best(values, state.prompts)
                        speed.restart()
                    write(step, values)
                    progress.report(_line(values, plan.epochs), f"loss {values['loss']:.3f}")
                    if callbacks:
                        asked = any([callback({**values}) for callback in callbacks])
                        ended = distributed.first_says(asked) and step < plan.steps
                        if ended:
                            say(f"a callback ended the training at step {step} of {plan.steps}.")
                            break
                # All hosts ask after every step, so they stop after the same one.
                stopping = stop.after(step)
                if stopping:
                    break
                if saver.is_due(step):
                    saver.save(distributed.to_host(state))
        state = distributed.to_host(state)
        saver.save(state, **{ENDED: ended})
        # Checkpoints are written in the background.
        checkpoints.wait()
        if stopping:
            say(
                f"stopped at step {state.step} of {plan.steps} and saved: the same command resumes "
                "there."
            )
            raise Stopped
        if count := distributed.sum_over_hosts(len(unreadable)):
            images = len(dataset.train)
            say(f"{count} of {images} training images could not be read and were left out.")
        if (bad := state.not_finite).steps:
            say(
                f"{bad.steps} of {plan.steps} steps were not finite and were skipped; the first is "
                f"step {bad.first}."
            )
        if model.config.classifier:
            return with_classifier(state, saver, stop, workdir)
    if best := saver.best:
        say(
            f"keeping the prompts of epoch {best.epoch}, which get {100 * best.accuracy:.1f} % of "
            "the validation images right."
        )
        return best.prompts
    return state.prompts


def _epoch_values(
    plan: Plan, step: int, totals: Totals, not_finite: NotFinite, prompts: Prompts
) -> dict[str, float]:
    """Return the means over the epoch that ends with `step`, and the learning rates of its parts.

    Raises:
      UserError: if no image could be read.
    """
    sums = {name: float(x) for name, x in totals.items()}
    if not sums["images"] and not not_finite.steps:
        raise UserError(
            "none of the training images could be read: check dataset.root and the image files."
        )
    rates = learning_rates(plan.schedule, step - 1)
    learned = set(map(rate_of, prompts))
    images = sums["images"] or math.nan  # 0 if all steps were skipped
    losses = {name: x / images for name, x in sums.items() if name.startswith("loss_")}
    return {
        "epoch": plan.epoch(step),
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
