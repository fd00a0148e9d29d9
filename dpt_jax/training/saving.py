"""What a run saves, and where it resumes."""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.logging import say
from dpt_jax.methods import CLASSIFIER
from dpt_jax.prompts import Prompts
from dpt_jax.training.checkpoints import Checkpoints, Saved, steps_of
from dpt_jax.training.initial_prompts import check_shapes, initial_prompts, other_clip, shapes_of
from dpt_jax.training.optimizer import state_from_saved, state_to_save
from dpt_jax.training.plan import Plan, train_batches
from dpt_jax.training.record import Record, check_same_images, training_meta
from dpt_jax.training.setup import Experiment
from dpt_jax.training.step import NotFinite, Totals, TrainState, new_state

# Keys of a checkpoint's metadata: whether a callback has ended the training, and the steps that
# trained the classifier.
ENDED, CLASSIFIER_STEPS = "ended", "classifier_steps"
# With several hosts, reading host 0's clock is a collective, so it is not done at every step.
STEPS_BETWEEN_CLOCKS = 20


class Best(NamedTuple):
    """The prompts of the epoch with the highest validation accuracy so far, the first if tied."""

    accuracy: float
    epoch: int
    prompts: Prompts


@dataclasses.dataclass
class Saver:
    """Saves the states of a run, and measures its time from here on.

    Attributes:
      experiment: What is trained.
      plan: Its numbers.
      checkpoints: Where the states go.
      record: Record of the training, see `training_meta`.
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
        """Start writing a checkpoint of a state, unless its step is saved already.

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
            "epoch": plan.epoch(int(state.step)),
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
        """Raise UserError naming the first step that was not finite, unless the run skips them."""
        steps, first = map(int, not_finite)
        if not steps or self.plan.step.skip:
            return
        self.checkpoints.wait()
        good = steps_of(self.checkpoints.directory)
        last = (
            f"the last good checkpoint is from step {good[0]}" if good else "no checkpoint is saved"
        )
        batch = next(train_batches(self.experiment, self.plan, first - 1))
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
    """Return the state of the newest intact checkpoint, or a new one; and the Saver of later ones.

    A run that has started no longer needs the prompts of `init_from`.

    Raises:
      UserError: if the run cannot be resumed: its CLIP, its class names, its images or the number
        of its epochs has changed, or it has ended with the prompts of its best epoch.
    """
    shapes = shapes_of(experiment.model)
    zeros: Prompts = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    averages = plan.schedule.average is not None
    new = new_state(experiment.model, plan.step, zeros, plan.optimizer, averages)
    keeps_best = experiment.config.train.keep == "best"
    saved = checkpoints.resume()
    if saved is None:
        new = new._replace(prompts=initial_prompts(experiment))
        best = Best(-1.0, 0, new.prompts) if keeps_best else None
        return new, Saver(experiment, plan, checkpoints, training_meta(experiment), best)
    training = saved.training
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
    """Raise UserError if a run cannot resume from a checkpoint.  step: of the towers' training."""
    config, meta = experiment.config, saved.meta
    # The path of CLIP's weights may change, but not the weights.
    if other := other_clip(saved, experiment.pretrained):
        raise UserError(
            f"{workdir} was trained on {other} than {config.clip.weights}: give the CLIP that it "
            "started with, or use another --workdir."
        )
    if list(experiment.dataset.classnames) != meta["classnames"]:
        raise UserError(
            f"{workdir} was trained on different class names than {config.dataset.name} has now: "
            "restore the original ones, or use another --workdir."
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
