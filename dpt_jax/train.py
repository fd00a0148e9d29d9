"""Training: one per-device step under pmap, and the loop around it."""

import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import jax_utils

from dpt_jax.checkpoint import Checkpoints
from dpt_jax.data import loader
from dpt_jax.errors import UserError
from dpt_jax.experiment import Experiment, Frozen, initial_prompts, training_meta
from dpt_jax.losses import loss_terms
from dpt_jax.metrics import MetricWriter, Progress, say
from dpt_jax.model import PromptedCLIP
from dpt_jax.optimizer import OptimizerConfig, learning_rates, make_optimizer

AXIS = "batch"
TRAIN_FILES = "train_files.txt"


class TrainState(NamedTuple):
    """Everything a step changes. totals: this epoch's sums of loss·rows, hits and rows."""

    step: Any
    prompts: Any
    opt_state: Any
    totals: Any


class StepConfig(NamedTuple):
    """The numbers of the loss and of the epochs that a step goes by."""

    alpha: float
    guidance_epochs: int
    steps_per_epoch: int


def make_step(
    model: PromptedCLIP, optimizer: optax.GradientTransformation, settings: StepConfig
) -> Callable[[TrainState, Frozen, Any], TrainState]:
    """The training step, pmapped over the local devices.

    Every argument has a leading device axis; the batch is what loader.shard
    makes. Loss, gradient and totals are global sums over global counts, so the
    result does not depend on how many devices share the batch.
    """

    def step(state: TrainState, frozen: Frozen, batch: Any) -> TrainState:
        epoch = state.step // settings.steps_per_epoch
        rows = batch["weight"]

        def objective(prompts: Any) -> tuple[jax.Array, jax.Array]:
            params = {"clip": frozen.clip, "prompts": prompts}
            texts = model.encode_texts(params, frozen.layout, frozen.texts)
            outputs = model(params, batch["image"], texts)
            guided = epoch < settings.guidance_epochs
            terms = loss_terms(model.prompts, outputs, batch["label"], rows, guided, settings.alpha)
            # Counts do not depend on the prompts, so only local sums are differentiated
            # and the gradients, summed over the devices, are those of the global loss.
            loss = sum(t.weight * t.total / jnp.maximum(jax.lax.psum(t.rows, AXIS), 1) for t in terms.values())
            hits = ((outputs.logits.argmax(-1) == batch["label"]) * rows).sum()
            return jnp.asarray(loss), hits

        (loss, hits), gradient = jax.value_and_grad(objective, has_aux=True)(state.prompts)
        loss, hits, count, gradient = jax.lax.psum((loss, hits, rows.sum(), gradient), AXIS)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.prompts)
        totals = jnp.where(state.step % settings.steps_per_epoch == 0, 0.0, state.totals)
        return TrainState(
            step=state.step + 1,
            prompts=optax.apply_updates(state.prompts, updates),
            opt_state=opt_state,
            totals=totals + jnp.stack([loss * count, hits, count]),
        )

    return jax.pmap(step, axis_name=AXIS, donate_argnums=0)


def train(experiment: Experiment, workdir: pathlib.Path) -> Any:
    """Trains to the last epoch, from the newest checkpoint where there is one; the prompts, on the host.

    Writes checkpoints, metrics and the list of training images to the workdir.
    Raises UserError where there is nothing to train on.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    name = config.dataset.name
    if not dataset.train:
        raise UserError(
            f"{name} has test images only: train on another dataset, and test its prompts here with "
            f"--config=configs/METHOD.py:{name} --mode=eval --config.init_from=WORKDIR."
        )
    without = sorted(set(range(len(dataset.classnames))) - {e.label for e in dataset.train})
    if without:
        missing = dataset.classnames[without[0]]
        raise UserError(f"{name} has no training images of class {missing!r}, so it cannot be trained on.")
    devices = jax.local_device_count()
    rows = min(config.train.batch_size, len(dataset.train))
    per_epoch = loader.steps_per_epoch(len(dataset.train), config.train.batch_size)
    total = per_epoch * config.train.epochs
    schedule = OptimizerConfig(
        visual_lr=config.train.visual_lr,
        text_lr=config.train.text_lr,
        warmup_epochs=config.train.warmup_epochs,
        schedule_epochs=config.train.schedule_epochs or config.train.epochs,
        steps_per_epoch=per_epoch,
    )
    optimizer = make_optimizer(schedule)
    step = make_step(model, optimizer, StepConfig(config.loss.alpha, config.loss.guidance_epochs, per_epoch))
    batches = loader.train_batches(
        dataset.read,
        dataset.train,
        model.clip.image_size,
        config.train.batch_size,
        config.train.epochs,
        config.seed,
        config.train.augment,
        config.dataset.workers,
        skip_unreadable=config.dataset.on_error == "skip",
    )
    unreadable: set[int] = set()
    meta = training_meta(experiment)

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / TRAIN_FILES).write_text("".join(f"{example.path}\n" for example in dataset.train))
    with Checkpoints(workdir, config.checkpoint.keep, create=True) as checkpoints:
        start = checkpoints.newest()
        if start == total:
            say(f"{workdir}: training is finished (step {total}); evaluating only.")
            return checkpoints.load_prompts(total).prompts
        prompts = initial_prompts(experiment)
        state = TrainState(np.int32(0), prompts, optimizer.init(prompts), np.zeros(3, np.float32))
        if start is not None:
            training = {"opt_state": state.opt_state, "totals": state.totals}
            training = checkpoints.load_training(start, training, batches)
            state = TrainState(np.int32(start), checkpoints.load_prompts(start).prompts, **training)
            say(f"{workdir}: going on at step {start} of {total}.")
        learned = sum(x.size for x in jax.tree.leaves(prompts))
        say(
            f"Training {model.prompts.method} on {len(dataset.train)} images of {len(dataset.classnames)} classes: "
            f"{config.train.epochs} epochs of {per_epoch} steps, {learned:,} learned numbers, "
            f"{devices} {jax.default_backend()} device{'s' if devices > 1 else ''}, {jnp.dtype(model.dtype).name}."
        )
        replicated = jax_utils.replicate(state)
        with MetricWriter(workdir, start or 0) as writer, Progress("train", total, start or 0) as progress:
            since, images = time.perf_counter(), 0
            for now in range((start or 0) + 1, total + 1):
                batch = next(batches)
                images += len(batch["label"])
                unreadable.update(batch["index"][batch["weight"] == 0].tolist())
                replicated = step(replicated, experiment.frozen, loader.shard(batch, rows, devices))
                progress.advance()
                if now % per_epoch == 0:
                    values = _epoch_values(replicated, schedule, now)
                    values["images_per_s"] = images / (time.perf_counter() - since)
                    since, images = time.perf_counter(), 0
                    writer.write(now, values)
                    progress.report(_line(values, config.train.epochs), f"loss {values['loss']:.3f}")
                if now % config.checkpoint.every_steps == 0 or now == total:
                    host = _to_host(replicated)
                    training = {"opt_state": host.opt_state, "totals": host.totals}
                    checkpoints.save(now, host.prompts, meta, training, batches)
        checkpoints.wait()
        if unreadable:
            say(f"{len(unreadable)} of {len(dataset.train)} training images could not be read and were left out.")
        return _to_host(replicated).prompts


def _to_host(replicated: TrainState) -> TrainState:
    # A copy: the next step donates the device's buffers.
    return jax.tree.map(np.array, jax_utils.unreplicate(replicated))


def _epoch_values(replicated: TrainState, schedule: OptimizerConfig, now: int) -> dict[str, float]:
    """Means over the epoch that ends with step `now`, and its learning rates."""
    loss, hits, count = map(float, np.asarray(replicated.totals[0]))
    if not count:
        raise UserError("none of the training images could be read: check dataset.root, and where the images are.")
    epoch = now // schedule.steps_per_epoch
    rates = {f"{name}_lr": float(rate(now - 1)) for name, rate in learning_rates(schedule).items()}
    return {"epoch": epoch, "loss": loss / count, "accuracy": hits / count, **rates}


def _line(values: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {values['epoch']:.0f}/{epochs}  loss {values['loss']:.4f}  accuracy {values['accuracy']:.3f}  "
        f"lr visual {values['visual_lr']:.2e} text {values['text_lr']:.2e}  {values['images_per_s']:.0f} images/s"
    )
