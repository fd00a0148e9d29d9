"""Training from Python."""

import collections
import contextlib
import functools
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from dpt_jax import distributed
from dpt_jax.config import keyword_config
from dpt_jax.data.folder import is_image_name
from dpt_jax.data.memory import Images, Labels, in_memory
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import evaluate
from dpt_jax.io import as_path
from dpt_jax.logging import quiet, say
from dpt_jax.methods import METHODS
from dpt_jax.predictor.predictor import Predictor
from dpt_jax.runs.run import train_run
from dpt_jax.training.loop import Callback
from dpt_jax.training.process import Stopped
from dpt_jax.training.setup import prepare
from dpt_jax.training.workdir import training_config

# Keys that say where images are.
OF_A_FOLDER = ("dataset.root", "dataset.name", "dataset.source", "dataset.sample", "dataset.split")


def fit(
    images: Images,
    labels: Labels | None = None,
    *,
    method: str = "dpt",
    clip: str | os.PathLike[str] = "",
    classnames: Sequence[str] | None = None,
    validation: tuple[Images, Labels] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: bool = True,
    **settings: Any,
) -> Predictor:
    """Train prompts for CLIP on a few images of each class.

    For the same images and settings, prompts are the same bits as those of `dpt-jax train`.

    Args:
      images: N images: paths, PIL images or uint8 arrays (H, W) or (H, W, 3), or an array
        (N, H, W, 3) or (N, H, W). All are used, unless `shots` is given. Or one folder, whose
        classes, splits and `shots` (16) are as on the command line.
      labels: N class names, which CLIP reads: "maine coon" and not "maine_coon". Or N class indices
        into `classnames`. None for a folder.
      method: A method of the table in docs/method.md.
      clip: CLIP's weights, by default "openai/clip-vit-base-patch32".
      classnames: All class names in order. By default those of the labels, sorted.
      validation: Images and labels, which are not trained on. Metrics then have `val_accuracy`, and
        keep="best" ends with the prompts of the best epoch.
      workdir: Folder of the run, as that of `dpt-jax train`: the same call resumes a run that was
        stopped. By default nothing stays on the disk.
      callbacks: Functions that get a dictionary of the metrics after each epoch. The training ends
        if one returns true.
      verbose: Whether to print lines and show bars.
      **settings: Keys that `dpt-jax settings` lists: `train__epochs=60`. The section may be left
        out if it is train or dataset, or if no other has such a name: `epochs=60`, `alpha=0.5`.

    Returns:
      The classifier.

    Raises:
      UserError: An argument is wrong, or does not fit the images, the CLIP or the workdir.
      KeyboardInterrupt: After Ctrl-C or SIGTERM, when the run is saved.

    Examples:
      >>> import pathlib
      >>> import dpt_jax
      >>> digits = pathlib.Path(dpt_jax.__file__).parent / "assets/digits/train"
      >>> scans = sorted(digits.glob("zero/*"))[:4] + sorted(digits.glob("one/*"))[:4]
      >>> classifier = dpt_jax.fit(
      ...     scans, ["zero"] * 4 + ["one"] * 4, method="coop", clip="tiny-clip", epochs=2,
      ...     template="a drawing of the number {}.", verbose=False,
      ... )
      >>> classifier.classnames
      ('one', 'zero')
      >>> classifier.predict_proba(scans).shape
      (8, 2)
      >>> classifier.encode_text(["two", "three", "four"]).shape
      (3, 128)
    """
    config, values = keyword_config(
        method, {**settings, **({"clip.weights": clip} if clip else {})}
    )
    whole = None
    if labels is not None:
        skip_missing = values.get("dataset.on_error") == "skip"
        whole = in_memory(images, labels, classnames, validation, skip_missing)
        by_class = collections.Counter(example.label for example in whole.train)
        values.setdefault("dataset.shots", max(by_class.values()))
    elif not isinstance(images, str | os.PathLike) or is_image_name(as_path(images).name):
        raise UserError("labels is missing: give a class name or an index for each image.")
    elif classnames is not None or validation is not None:
        raise UserError(
            f"{images}: a folder has its own classnames and validation images: drop these."
        )
    if callable(callbacks) or not all(map(callable, callbacks)):
        raise UserError("callbacks is not a list of functions.")
    taken = OF_A_FOLDER if whole else ("dataset.root",)
    if twice := [key for key in taken if key in values]:
        raise UserError(f"{twice[0]} is given, and so are the images: leave it out.")
    if not whole:
        values["dataset.root"] = os.fspath(images)
    distributed.keep_compiled()
    with contextlib.ExitStack() as stack:
        if not verbose:
            stack.enter_context(quiet())
        if workdir is None:
            temporary = tempfile.TemporaryDirectory(prefix="dpt_jax-")
            folder = as_path(stack.enter_context(temporary))
        else:
            folder = as_path(workdir)
        if whole and all(name.isdigit() for name in whole.classnames):
            say("the classes are numbers, which mean little to CLIP: name them by classnames.")
        if (callbacks or validation is not None) and not METHODS[method].in_towers:
            say(f"{method} has no epochs, so callbacks and validation images are not used.")
        config = training_config(config, values, folder)
        own = functools.partial(prepare, whole=whole)
        try:
            experiment, saved = train_run(config, folder, prepare=own, callbacks=callbacks)
        except Stopped:
            raise KeyboardInterrupt from None
        if workdir is not None and experiment.dataset.test:
            evaluate(experiment, saved, folder)
        return Predictor(experiment, saved, source=None if workdir is None else folder)
