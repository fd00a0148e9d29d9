"""Training: one per-device step under pmap, and the loop around it."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpt_jax import devices
from dpt_jax.checkpoint import Checkpoints
from dpt_jax.data import loader
from dpt_jax.errors import UserError
from dpt_jax.experiment import Experiment, Frozen, initial_prompts, training_meta
from dpt_jax.losses import count, loss
from dpt_jax.metrics import MetricWriter, Progress, say
from dpt_jax.model import Plain, PromptedCLIP, Texts
from dpt_jax.optimizer import OptimizerConfig, learning_rates, make_optimizer

TRAIN_FILES = "train_files.txt"


class TrainState(NamedTuple):
    """Everything a step changes. totals: this epoch's sums of loss·rows, hits and rows."""

    step: Any
    prompts: Any
    opt_state: Any
    totals: Any


class StepConfig(NamedTuple):
    """The numbers that a step goes by. microbatch: the rows that a device takes at a time, 0 for all of its rows."""

    alpha: float
    guidance_epochs: int
    steps_per_epoch: int
    microbatch: int = 0


def make_step(
    model: PromptedCLIP, optimizer: optax.GradientTransformation, settings: StepConfig
) -> Callable[[TrainState, Frozen, Any], TrainState]:
    """The training step, pmapped over the local devices.

    Every argument has a leading device axis; the batch is what loader.shard
    makes. Loss, gradient and totals are global sums over global counts, so the
    result depends neither on how many devices and hosts share the batch, nor on
    the parts in which a device takes its rows.
    """

    def step(state: TrainState, frozen: Frozen, batch: Any) -> TrainState:
        guided = state.step // settings.steps_per_epoch < settings.guidance_epochs
        rows = batch["weight"]

        def params(prompts: Any) -> Any:
            return {"clip": frozen.clip, "prompts": prompts}

        def encode(prompts: Any) -> tuple[jax.Array, Texts]:
            texts = model.encode_texts(params(prompts), frozen.layout, frozen.texts, devices.AXIS)
            return texts.learned, texts

        # Encoded once a step, whatever the parts: `pull` takes their gradients back into the text prompt together.
        learned, pull, texts = jax.vjp(encode, state.prompts, has_aux=True)
        # Without what is for pictures alone, which the parts of a batch would carry along.
        plain = model.plain(params(state.prompts), batch["image"], texts)._replace(attention=None)
        counts = jax.lax.psum(count(plain.indices, batch["label"], rows, model.cavpt_layers), devices.AXIS)

        def objective(trained: Any, part: dict[str, Any], plain: Plain) -> tuple[jax.Array, jax.Array]:
            prompts, learned = trained
            outputs = model(params(prompts), part["image"], texts._replace(learned=learned), plain)
            # The counts are global, so only these rows' share is differentiated, and the gradients, summed over
            # parts and devices, are those of the global loss.
            share = loss(model.prompts, outputs, part["label"], part["weight"], counts, guided, settings.alpha)
            return share, ((outputs.logits.argmax(-1) == part["label"]) * part["weight"]).sum()

        differentiate = jax.value_and_grad(objective, has_aux=True)
        trained = (state.prompts, learned)
        if settings.microbatch in (0, len(rows)):
            (share, hits), (gradient, to_texts) = differentiate(trained, batch, plain)
        else:
            parts = jax.tree.map(lambda x: x.reshape(-1, settings.microbatch, *x.shape[1:]), (batch, plain))
            none = jax.tree.map(jnp.zeros_like, ((rows[0], rows[0]), trained))

            def add(sums: Any, part: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, sums, differentiate(trained, *part)), None

            ((share, hits), (gradient, to_texts)), _ = jax.lax.scan(add, none, parts)
        gradient = jax.tree.map(jnp.add, gradient, pull(to_texts)[0])
        total, hits, gradient = jax.lax.psum((share, hits, gradient), devices.AXIS)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.prompts)
        totals = jnp.where(state.step % settings.steps_per_epoch == 0, 0.0, state.totals)
        return TrainState(
            step=state.step + 1,
            prompts=optax.apply_updates(state.prompts, updates),
            opt_state=opt_state,
            totals=totals + jnp.stack([total * counts.images, hits, counts.images]),
        )

    return jax.pmap(step, axis_name=devices.AXIS, donate_argnums=0)


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
    hosts, local = jax.process_count(), jax.local_device_count()
    rows = -(-min(config.train.batch_size, len(dataset.train)) // hosts)
    microbatch = min(config.train.microbatch, -(-rows // local))
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
    settings = StepConfig(config.loss.alpha, config.loss.guidance_epochs, per_epoch, microbatch)
    step = make_step(model, optimizer, settings)
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
    )
    unreadable: set[int] = set()
    meta = training_meta(experiment)

    if devices.is_first():
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
            training = checkpoints.load_training(start, training)
            state = TrainState(np.int32(start), checkpoints.load_prompts(start).prompts, **training)
            say(f"{workdir}: going on at step {start} of {total}.")
        learned = sum(x.size for x in jax.tree.leaves(prompts))
        say(
            f"Training {model.prompts.method} on {len(dataset.train)} images of {len(dataset.classnames)} classes: "
            f"{config.train.epochs} epochs of {per_epoch} steps, {learned:,} learned numbers, "
            f"{_devices_in_words()}, {jnp.dtype(model.dtype).name}."
        )
        batches = make_batches(start=start or 0)
        replicated = devices.replicate(state)
        with MetricWriter(workdir, start or 0) as writer, Progress("train", total, start or 0) as progress:
            since, images = time.perf_counter(), 0
            for now in range((start or 0) + 1, total + 1):
                batch = next(batches)
                images += len(batch["label"]) * hosts
                unreadable.update(batch["index"][batch["weight"] == 0].tolist())
                replicated = step(replicated, experiment.frozen, loader.shard(batch, rows, local, microbatch or 1))
                progress.advance()
                if now % per_epoch == 0:
                    values = _epoch_values(replicated, schedule, now)
                    values["images_per_s"] = images / (time.perf_counter() - since)
                    since, images = time.perf_counter(), 0
                    writer.write(now, values)
                    progress.report(_line(values, config.train.epochs), f"loss {values['loss']:.3f}")
                if now % config.checkpoint.every_steps == 0 or now == total:
                    host = devices.to_host(replicated)
                    training = {"opt_state": host.opt_state, "totals": host.totals}
                    checkpoints.save(now, host.prompts, meta | {"epoch": now // per_epoch}, training)
        checkpoints.wait()
        if left_out := devices.sum_over_hosts(len(unreadable)):
            say(f"{left_out} of {len(dataset.train)} training images could not be read and were left out.")
        return devices.to_host(replicated).prompts


def _devices_in_words() -> str:
    count, hosts = jax.device_count(), jax.process_count()
    words = f"{count} {jax.default_backend()} device{'s' if count > 1 else ''}"
    return f"{words} of {hosts} hosts" if hosts > 1 else words


def _epoch_values(replicated: TrainState, schedule: OptimizerConfig, now: int) -> dict[str, float]:
    """Means over the epoch that ends with step `now`, and its learning rates."""
    total, hits, images = map(float, devices.to_host(replicated.totals))
    if not images:
        raise UserError("none of the training images could be read: check dataset.root, and where the images are.")
    epoch = now // schedule.steps_per_epoch
    rates = {f"{name}_lr": float(rate(now - 1)) for name, rate in learning_rates(schedule).items()}
    return {"epoch": epoch, "loss": total / images, "accuracy": hits / images, **rates}


def _line(values: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {values['epoch']:.0f}/{epochs}  loss {values['loss']:.4f}  accuracy {values['accuracy']:.3f}  "
        f"lr visual {values['visual_lr']:.2e} text {values['text_lr']:.2e}  {values['images_per_s']:.0f} images/s"
    )
