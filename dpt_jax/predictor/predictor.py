"""A trained prompt on its CLIP, ready to classify."""

import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from dpt_jax import distributed, settings
from dpt_jax.clip.model import normalize
from dpt_jax.clip.preprocessing import test_transform
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.data.dataset import Dataset, load_dataset
from dpt_jax.data.records import Files, read_image, to_rgb
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import make_classifier
from dpt_jax.evaluation.finite import check_finite
from dpt_jax.evaluation.metrics import softmax
from dpt_jax.evaluation.results import RESULTS_FILE
from dpt_jax.io import as_path
from dpt_jax.methods import ZERO_SHOT
from dpt_jax.model import PromptedCLIP
from dpt_jax.model.outputs import Outputs, Plain
from dpt_jax.predictor.classnames import check_bound, check_classnames
from dpt_jax.storage.weights import local_weights
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import setup as experiment
from dpt_jax.training.checkpoints import FOLDER, Saved, load_newest
from dpt_jax.training.texts import TextEncoder

# One image, or a batch of them, in any of the forms that images come in.
Images = Any


class Predictor:
    """Classifies images with a trained prompt.

    Any number of images is classified `batch_size` images a device at a time,
    padded, by a program that is compiled once. `classnames` are in the order of
    the probabilities. Answers that are not finite raise UserError.
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
        self._prompts = distributed.replicate(saved.prompts)
        self._classifier = make_classifier(prepared.model)
        self._texts = self._classifier.encode(prepared.frozen, self._prompts)
        self._encode_names = TextEncoder(prepared, self._prompts)

    def predict(self, images: Images) -> np.ndarray:
        """Return the probability of each class for N images: (N, C) float32.

        images: paths, PIL images or uint8 arrays (H, W) or (H, W, 3), one or a
        sequence of them; also an array (N, H, W, 3). They are decoded a batch at
        a time. Raise UserError for one that is no image.
        """
        return self._probabilities(images, self.pixels)

    def classify(self, pixels: np.ndarray) -> np.ndarray:
        """Return the probability of each class for pixels as `pixels` gives them."""
        return self._probabilities(pixels, np.asarray)

    def encode_image(self, images: Images) -> np.ndarray:
        """Return the features of N images in the prompted tower: (N, E) float32, unit length."""
        features = self._answers(_sequence(images), self.pixels, lambda seen, _: seen.features)
        self._check("the features of the images", features)
        return features

    def encode_text(self, classnames: Sequence[str] | None = None) -> np.ndarray:
        """Return the features of C class names: (C, E) float32 of unit length.

        classnames: the predictor's own where none are given. The names stand in the learned
        context, or in the template where none was learned. The products with the images'
        features, times CLIP's logit scale, are the logits of `predict`. Raise UserError where the
        context depends on the image.
        """
        if self.model.prompts.conditioned:
            raise UserError(
                f"the context of {self.model.prompts.method} depends on the image, so a class has "
                "no text features of its own: predict takes images."
            )
        if classnames is not None:
            classnames = check_classnames(classnames, "encode_text")
            check_bound(self._prepared, classnames, self.training)
        if classnames is None or tuple(classnames) == tuple(self.classnames):
            learned = distributed.to_host(self._texts.learned)
        else:
            learned = self._encode_names(classnames)
        features = np.asarray(normalize(learned))
        self._check("the features of the texts", features)
        return features

    def pixels(self, images: Images) -> np.ndarray:
        """Return N images as the model takes them: (N, size, size, 3) uint8, see Preprocessing."""
        size, preprocessing = self.model.clip.image_size, self.model.clip.preprocessing

        def transformed(image: Any) -> np.ndarray:
            return test_transform(_as_pil(image), size, preprocessing)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            made = list(pool.map(transformed, _sequence(images)))
        return np.stack(made) if made else np.zeros((0, size, size, 3), np.uint8)

    def see(self, pixels: np.ndarray) -> tuple[Any, Any]:
        """Return model.Outputs and model.Plain of images, attention too, as host arrays.

        pixels: (N, size, size, 3) uint8.
        """
        outputs, plain = self._answers(pixels, np.asarray, lambda *seen: seen)
        self._check("the logits of plain CLIP", plain.logits)
        self._check("the logits", outputs.logits)
        return outputs, plain

    def _probabilities(self, images: Images, pixels: Callable[[Any], np.ndarray]) -> np.ndarray:
        plain, logits = self._answers(
            _sequence(images), pixels, lambda seen, plain: (plain.logits, seen.logits)
        )
        self._check("the logits of plain CLIP", plain)
        self._check("the logits", logits)
        return softmax(logits)

    def _answers(
        self,
        images: Sequence[Any] | np.ndarray,
        pixels: Callable[[Any], np.ndarray],
        pick: Callable[[Outputs, Plain], Any],
    ) -> Any:
        """Return what `pick` takes of the answers to N images: a tree of host arrays (N, …).

        A batch is decoded and started before the answers to the last one are fetched.
        """
        rows, parts, running = self.rows, [], []
        # At least once, so that no image gives empty arrays of the right shapes.
        for start in range(0, max(len(images), 1), rows):
            own = pixels(images[start : start + rows])
            padded = np.concatenate([own, np.zeros((rows - len(own), *own.shape[1:]), np.uint8)])
            batch = padded.reshape(-1, self.batch_size, *own.shape[1:])
            frozen = self._prepared.frozen
            seen = self._classifier.classify(frozen, self._prompts, self._texts, batch)
            running.append((pick(*seen), len(own)))
            if len(running) > 1:
                parts.append(_on_host(*running.pop(0)))
        parts += [_on_host(*one) for one in running]
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    def _check(self, what: str, answers: np.ndarray) -> None:
        check_finite({what: answers}, self.prompts, self._prepared.frozen.clip)

    @property
    def rows(self) -> int:
        """Return how many images all devices take at a time."""
        return self.batch_size * jax.local_device_count()

    @property
    def texts(self) -> Any:
        """Return model.Texts of the classes, host arrays."""
        return distributed.to_host(self._texts)

    @property
    def pretrained(self) -> Any:
        """Return the backbone, whose parameters have a leading device axis."""
        return self._prepared.pretrained


def load(
    workdir: str | os.PathLike[str],
    classnames: Sequence[str] | None = None,
    clip: str = "",
    batch_size: int = 0,
) -> Predictor:
    """Return the prompts of a workdir, or of a file of `convert export`, on their CLIP.

    classnames: other classes than those of the training, or of the evaluation
    elsewhere whose folder is given, for prompts that are not bound to them.
    clip: where the weights are, if not where the training had them. batch_size:
    images that a device takes at a time; 0 for 8 on a CPU and 64 on other devices.

    Raise UserError naming what is missing or does not fit.
    """
    source = as_path(workdir)
    config = settings.load_saved(source)
    if clip:
        config.clip.weights = clip
    if classnames is not None:
        classnames = check_classnames(classnames, "classnames")
    if not isinstance(batch_size, int) or batch_size < 0:
        raise UserError(f"batch_size is {batch_size!r}: give a whole number, 0 for the default.")
    distributed.keep_compiled()
    holder = _holder(config, source)
    trained = Saved(0, {}, {}) if config.method == ZERO_SHOT else load_newest(holder)
    names: Sequence[str] | None = classnames
    if names is None and holder == source:
        names = trained.meta.get("classnames")
    if names is None:
        # Zero-shot, checkpoints of the published code, and evaluations on other classes than those
        # of the training: only the dataset knows its classes.
        try:
            names = load_dataset(config.dataset, config.seed).classnames
        except UserError as reason:
            raise UserError(
                f"{source} does not say what its classes are: name them ({reason})"
            ) from reason
    pretrained = load_clip(local_weights(config.clip.weights), experiment.compute_dtype(config))
    prepared = experiment.assemble(config, _classes_alone(names), pretrained)
    saved = (
        trained
        if not prepared.model.prompts.learned
        else adoption.fit(prepared, trained, str(source))
    )
    return Predictor(prepared, saved, batch_size or (8 if jax.default_backend() == "cpu" else 64))


def prompts_of(prepared: experiment.Experiment, source: epath.Path) -> Saved:
    """Return the prompts that a workdir's results are of: its own, or those of `init_from`."""
    return adoption.saved_prompts(prepared, _holder(prepared.config, source))


def _holder(config: ConfigDict, source: epath.Path) -> epath.Path:
    if config.init_from and not (source / FOLDER).exists() and (source / RESULTS_FILE).exists():
        return as_path(config.init_from)
    return source


def _classes_alone(classnames: Sequence[str]) -> Dataset:
    return Dataset(Files(pathlib.Path()), tuple(classnames), [], [], [])


def _sequence(images: Images) -> Any:
    """Return one image or several as a sequence of images."""
    several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
    return images if several else [images]


def _on_host(answers: Any, images: int) -> Any:
    """Return the answers to so many images, of all devices, as host arrays."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:images], answers)


def _as_pil(image: Any) -> Image.Image:
    """Return an image of any form as PIL's.  Raise UserError for what is no image."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except Exception as reason:  # it is decoded only now
            raise UserError(f"{image!r} cannot be read ({reason}).") from reason
    array = np.asarray(image)
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or not array.size:
        raise UserError(
            "an image is a path, a PIL image or a uint8 array (H, W) or (H, W, 3), not an array "
            f"of {array.dtype} "
            f"with shape {array.shape}."
        )
    return Image.fromarray(array).convert("RGB")
