"""A trained prompt on its CLIP, ready to classify: what predict, visualize, report and convert all start from."""

import concurrent.futures
import operator
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special
from ml_collections import ConfigDict
from PIL import Image

from dpt_jax.clip.preprocessing import test_transform
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.data.dataset import Dataset, load_dataset
from dpt_jax.data.records import Files, read_image, to_rgb
from dpt_jax.errors import UserError
from dpt_jax.inference import experiment
from dpt_jax.inference.evaluation import RESULTS_FILE, make_classifier
from dpt_jax.model import PromptedCLIP, normalize
from dpt_jax.runtime import devices
from dpt_jax.settings import config as configs
from dpt_jax.storage.checkpoints import FOLDER, Saved, load_newest

# One image, or a batch of them, in any of the forms that images come in.
Images = Any


class Predictor:
    """Classifies images with a trained prompt.

    Batches of any size are classified `batch_size` images a device at a time,
    padded, by a program that is compiled once. `classnames` are in the order of
    the probabilities.
    """

    def __init__(self, prepared: experiment.Experiment, saved: Saved, batch_size: int) -> None:
        """prepared, saved: a backbone with classes, and the prompts that belong to it."""
        self.classnames = prepared.dataset.classnames
        self.config: ConfigDict = prepared.config
        self.model: PromptedCLIP = prepared.model
        self.batch_size = batch_size
        self.prompts = saved.prompts
        self.training = saved.meta
        self._prepared = prepared
        self._prompts = devices.replicate(saved.prompts)
        self._classifier = make_classifier(prepared.model)
        self._texts = self._classifier.encode(prepared.frozen, self._prompts)

    def predict(self, images: Images) -> np.ndarray:
        """The probability of each class for N images: (N, C) float32.

        images: paths, PIL images or uint8 arrays (H, W) or (H, W, 3), one or a
        sequence of them; also an array (N, H, W, 3). Raises UserError for one
        that is no image.
        """
        outputs, _ = self.see(self.pixels(images))
        return scipy.special.softmax(outputs.logits, axis=-1)

    def encode_image(self, images: Images) -> np.ndarray:
        """Features of N images as the prompted tower makes them: (N, E) float32 of unit length."""
        return self.see(self.pixels(images))[0].features

    def encode_text(self, classnames: Sequence[str] | None = None) -> np.ndarray:
        """Features of C class names (its own, where none are given) in the learned context, or in the template where
        no context was learned: (C, E) float32 of unit length.

        Their products with the images' features, times CLIP's logit scale, are the logits of `predict`.
        """
        if classnames is None:
            learned = self._texts.learned
        else:
            classnames = check_classnames(classnames, "encode_text")
            other = with_classes(self._prepared, classnames, self.training)
            learned = self._classifier.encode(other.frozen, self._prompts).learned
        return np.asarray(normalize(devices.to_host(learned)))

    def pixels(self, images: Images) -> np.ndarray:
        """Return N images as the model takes them: (N, size, size, 3) uint8, see Preprocessing."""
        several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        sequence = list(images) if several else [images]
        clip = self.model.clip
        size = clip.image_size

        def make(image: Any) -> np.ndarray:
            return test_transform(_as_pil(image), size, clip.preprocessing)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            made = list(pool.map(make, sequence))
        return np.stack(made) if made else np.zeros((0, size, size, 3), np.uint8)

    def see(self, pixels: np.ndarray) -> tuple[Any, Any]:
        """What the method and plain CLIP make of images, for pictures too: (model.Outputs, model.Plain) of host arrays.

        pixels: (N, size, size, 3) uint8.
        """
        rows, parts = self.rows, []
        # At least once, so that no image gives empty arrays of the right shapes.
        for start in range(0, max(len(pixels), 1), rows):
            own = pixels[start : start + rows]
            padded = np.concatenate([own, np.zeros((rows - len(own), *own.shape[1:]), np.uint8)])
            images = padded.reshape(-1, self.batch_size, *own.shape[1:])
            seen = self._classifier.classify(
                self._prepared.frozen, self._prompts, self._texts, images
            )
            whole = jax.tree.map(lambda x: np.asarray(x).reshape(rows, *x.shape[2:]), seen)
            parts.append(jax.tree.map(operator.itemgetter(slice(len(own))), whole))
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    @property
    def rows(self) -> int:
        """Images that all devices take at a time."""
        return self.batch_size * jax.local_device_count()

    @property
    def texts(self) -> Any:
        """model.Texts of the classes, host arrays."""
        return devices.to_host(self._texts)

    @property
    def pretrained(self) -> Any:
        """The backbone, whose parameters have a leading device axis."""
        return self._prepared.pretrained


def load(
    workdir: str | os.PathLike[str],
    classnames: Sequence[str] | None = None,
    clip: str = "",
    batch_size: int = 0,
) -> Predictor:
    """The prompts of a workdir, or of a file of `convert export`, on their CLIP.

    classnames: other classes than those of the training, for prompts that are
    not bound to them. clip: where the weights are, if not where the training
    had them. batch_size: images that a device takes at a time; 0 for 8 on a CPU
    and 64 on other devices.

    Raises UserError naming what is missing or does not fit.
    """
    source = pathlib.Path(workdir).expanduser()
    config = configs.load_saved(source)
    if clip:
        config.clip.weights = clip
    if classnames is not None:
        classnames = check_classnames(classnames, "classnames")
    if not isinstance(batch_size, int) or batch_size < 0:
        raise UserError(f"batch_size is {batch_size!r}: give a whole number, 0 for the default.")
    devices.keep_compiled()
    trained = (
        Saved(0, {}, {})
        if configs.method(config) == "zeroshot"
        else load_newest(_holder(config, source))
    )
    names = trained.meta.get("classnames") if classnames is None else classnames
    if names is None:
        # Zero-shot, and checkpoints of the published code: only the dataset knows its classes.
        try:
            names = load_dataset(config.dataset, config.seed).classnames
        except UserError as reason:
            raise UserError(
                f"{source} does not say what its classes are: name them ({reason})"
            ) from reason
    pretrained = load_clip(config.clip.weights, experiment.compute_dtype(config))
    prepared = experiment.assemble(config, _classes_alone(names), pretrained)
    saved = (
        trained
        if prepared.model.prompts.method == "zeroshot"
        else experiment.fit(prepared, trained, str(source))
    )
    return Predictor(prepared, saved, batch_size or (8 if jax.default_backend() == "cpu" else 64))


def prompts_of(prepared: experiment.Experiment, source: pathlib.Path) -> Saved:
    """The prompts that a workdir's results are of: its own, or those it was to evaluate elsewhere."""
    return experiment.saved_prompts(prepared, _holder(prepared.config, source))


def _holder(config: ConfigDict, source: pathlib.Path) -> pathlib.Path:
    if config.init_from and not (source / FOLDER).exists() and (source / RESULTS_FILE).exists():
        return pathlib.Path(config.init_from)
    return source


def with_classes(
    prepared: experiment.Experiment, classnames: Sequence[str], training: dict[str, Any]
) -> experiment.Experiment:
    """The same backbone and prompts with other classes.  Raises UserError where the context is bound to its own."""
    if prepared.model.prompts.class_specific and list(classnames) != training.get("classnames"):
        raise UserError(
            "this context is one for each class of its training, and means nothing for others."
        )
    return experiment.assemble(prepared.config, _classes_alone(classnames), prepared.pretrained)


def check_classnames(classnames: Iterable[str], source: str) -> list[str]:
    """The names as a list.  Raises UserError where they name nothing, or a class twice."""
    if isinstance(classnames, str):
        raise UserError(f"{source} is {classnames!r}: give a list of names.")
    names: dict[str, None] = {}
    for name in classnames:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UserError(f"{source}: {name!r} is no name of a class.")
        if name in names:
            raise UserError(f"{source} names {name!r} twice: remove one, or tell the two apart.")
        names[str(name)] = None  # also one of NumPy's strings
    if not names:
        raise UserError(f"{source} names no class: give at least one.")
    return list(names)


def read_classnames(file: pathlib.Path) -> list[str]:
    """The class names of a text file, one a line.  Raises UserError, see check_classnames."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as reason:
        raise UserError(f"--classes: {file} cannot be read as text ({reason}).") from reason
    return check_classnames([line.strip() for line in lines if line.strip()], str(file))


def _classes_alone(classnames: Sequence[str]) -> Dataset:
    return Dataset(Files(pathlib.Path()), tuple(classnames), [], [])


def _as_pil(image: Any) -> Image.Image:
    """Raises UserError for what is no image."""
    if isinstance(image, str | os.PathLike):
        return read_image(pathlib.Path(image))
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except Exception as reason:  # it is decoded only now
            raise UserError(f"{image!r} cannot be read ({reason}).") from reason
    array = np.asarray(image)
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or not array.size:
        raise UserError(
            f"an image is a path, a PIL image or a uint8 array (H, W) or (H, W, 3), not an array of {array.dtype} "
            f"with shape {array.shape}."
        )
    return Image.fromarray(array).convert("RGB")
