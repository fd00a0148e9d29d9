"""Trained prompts on their CLIP: they classify images, and show what they have learned."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.blocks import PyTree
from dpt_jax.clip.model import normalize
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.data import loader
from dpt_jax.data.dataset import load_dataset
from dpt_jax.data.folder import Images, Labels, as_rgb, check_classnames, image_list, label_indices
from dpt_jax.data.records import Dataset, Example, Files, Reader
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import check_finite, classify, merged_and_encoded
from dpt_jax.evaluation.results import RESULTS_FILE, read_current, softmax
from dpt_jax.io import as_path, reading
from dpt_jax.logging import say
from dpt_jax.methods import ZERO_SHOT
from dpt_jax.model import PromptedCLIP
from dpt_jax.training import setup
from dpt_jax.training.checkpoints import (
    SUFFIX,
    Saved,
    is_prompt_file,
    load_newest,
    read_header,
    write_prompt_file,
)
from dpt_jax.training.saved import prompts_for
from dpt_jax.training.setup import encode_names
from dpt_jax.training.workdir import load_config, source_of

if TYPE_CHECKING:
    import pandas as pd

TOP = 4
PAIRS = 10_000  # of words, for the mean distance of two words


class Predictor:
    """A classifier of images, as `fit` and `load` return it.

    Any number of images is classified in batches of one size, by a program that is compiled once.

    Attributes:
      classnames: Names of the C classes, in the order of the probabilities.
      config: The settings of the run.
      model: The model of its method.
      rows: Images that all devices take at a time.
      prompts: The learned parameters, host arrays.
      merged_prompts: The same on the devices, with learned weights merged into CLIP's.
      pretrained: The CLIP, whose parameters have a leading device axis.
      texts: model.Texts of the classes, host arrays.
    """

    def __init__(
        self,
        experiment: setup.Experiment,
        saved: Saved,
        batch_size: int = 0,
        source: epath.Path | None = None,
    ) -> None:
        """Encode the classes of an experiment; `source` is the file or folder of the prompts.

        batch_size: Images that a device takes at a time; 0 for 8 on a CPU and 64 elsewhere.
        """
        self.classnames = experiment.dataset.classnames
        self.config: ConfigDict = experiment.config
        self.model: PromptedCLIP = experiment.model
        batch_size = batch_size or (8 if jax.default_backend() == "cpu" else 64)
        self.rows = batch_size * jax.local_device_count()
        self.pretrained, self.prompts = experiment.pretrained, saved.prompts
        self._saved, self._source = saved, source
        self.merged_prompts, self._texts = merged_and_encoded(experiment, saved.prompts)
        self.texts: PyTree = distributed.to_host(self._texts)

    def predict(self, images: Images) -> list[str]:
        """Return the name of the likeliest class of each image, see `predict_proba`."""
        return [self.classnames[c] for c in self.predict_proba(images).argmax(-1)]

    def predict_proba(self, images: Images) -> np.ndarray:
        """Return the probabilities of the classes, in the order of `classnames`.

        Args:
          images: Paths, PIL images or uint8 arrays (H, W) or (H, W, 3), one or a sequence of N;
            also an array (N, H, W, 3) or (N, H, W).

        Returns:
          (N, C) float32.

        Raises:
          UserError: An image cannot be read, or the logits are not finite.
        """
        none = np.zeros((0, len(self.classnames)), np.float32)
        parts = [softmax(outputs.logits) for _, outputs in self.answers(images)]
        return np.concatenate([none, *parts])

    def score(self, images: Images, labels: Labels) -> float:
        """Return the accuracy, 0 to 1.

        Args:
          images: N images, see `predict_proba`.
          labels: Their classes: N names, or N indices into `classnames`.

        Raises:
          UserError: A label is not a class, or there are not as many labels as images.
        """
        images = image_list(images)
        indices, _ = label_indices(labels, len(images), self.classnames)
        return float((self.predict_proba(images).argmax(-1) == indices).mean())

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the prompts to a prompt file, which `dpt_jax.load` and all commands read.

        Its name ends in .safetensors. CLIP is not in it.

        Raises:
          UserError: There are no prompts, they are used with other classes than they were trained
            on, or the file cannot be written.
        """
        trained_on = self._saved.meta.get("classnames") or self.classnames
        if list(trained_on) != list(self.classnames):
            raise UserError(
                f"{file}: a prompt file has the classes of the training, but these are others: "
                "load the prompts without classnames, and save again."
            )
        export(self.config, self._saved, self._source, as_path(file))

    def encode_image(self, images: Images) -> np.ndarray:
        """Return the features of images in the prompted tower, (N, E) float32 of unit length."""
        none = np.zeros((0, self.model.clip_config.embed_dim), np.float32)
        parts = [outputs.features for _, outputs in self.answers(images)]
        return np.concatenate([none, *parts])

    def encode_text(self, classnames: Sequence[str] | None = None) -> np.ndarray:
        """Return the features of class names, in the learned context or in the template.

        Their products with the images' features, times CLIP's logit scale, are the logits of
        `predict_proba`, unless the method has a classifier, which starts from these features.

        Args:
          classnames: C names, by default those of this predictor.

        Returns:
          (C, E) float32, of unit length.

        Raises:
          UserError: The context depends on the image, or is learned for other classes.
        """
        if self.model.config.conditioned:
            raise UserError(
                f"the context of {self.config.method} depends on the image, so a class has no text "
                "features of its own: use predict_proba."
            )
        if classnames is not None:
            classnames = check_classnames(classnames, "encode_text")
        if classnames is None or tuple(classnames) == tuple(self.classnames):
            learned = self.texts.learned
        elif self.model.config.class_specific:
            raise UserError(
                "the context of each class is learned (text_prompt.class_specific), so other class "
                "names have none."
            )
        else:
            own = self.config, self.model, self.pretrained, self.merged_prompts
            learned = encode_names(*own, classnames)
        features = np.asarray(normalize(learned))
        check_finite({"the features of the texts": features}, self.prompts, self.pretrained.params)
        return features

    def answers(
        self, images: Images, read: Reader = as_rgb, skip_unreadable: bool = False
    ) -> Iterator[tuple[loader.Batch, PyTree]]:
        """Yield batches with the model's outputs, while the next images are decoded.

        Args:
          images: See `predict_proba`; with `read`, whatever that takes.
          read: Reads an image as a PIL image.
          skip_unreadable: Whether an image that raises UnreadableImageError becomes black, and its
            weight 0, instead of ending the iteration.

        Yields:
          The batch: image (B, size, size, 3) uint8, index (B,) into `images` and weight (B,); and
          model.Outputs of host arrays.
        """
        loading = loader.Loading(
            read=read,
            examples=[Example(image, 0) for image in image_list(images)],
            size=self.model.clip_config.image_size,
            preprocessing=self.model.clip_config.preprocessing,
            batch_size=self.rows,
            skip_unreadable=skip_unreadable,
        )
        program = distributed.on_devices(classify, self.model)

        def compute(batch: loader.Batch) -> PyTree:
            pixels = loader.shard(batch, self.rows, jax.local_device_count())["image"]
            return program(self.pretrained.params, self.merged_prompts, self._texts, pixels)

        for batch, outputs in distributed.overlapped(loader.test_batches(loading), compute):
            answers = {
                "the logits of zero-shot CLIP": outputs.zero_shot.logits,
                "the logits": outputs.logits,
            }
            check_finite(answers, self.prompts, self.pretrained.params)
            yield batch, outputs


def load(
    workdir: str | os.PathLike[str],
    classnames: Sequence[str] | None = None,
    clip: str | os.PathLike[str] = "",
    batch_size: int = 0,
) -> Predictor:
    """Load the prompts of a run and their CLIP.

    Args:
      workdir: Folder of a run or of its evaluation on another dataset, or a prompt file.
      classnames: Other classes than those of the training, or of that evaluation.
      clip: Where CLIP's weights are, if they have moved.
      batch_size: Images that a device takes at a time; 0 for 8 on a CPU and 64 on other devices.

    Raises:
      UserError: Something is missing or does not fit.
    """
    source = as_path(workdir)
    config = load_config(source)
    if clip:
        config.clip.weights = os.fspath(clip)
    if classnames is not None:
        classnames = check_classnames(classnames, "classnames")
    distributed.keep_compiled()
    holder = source_of(source)
    saved = Saved(0, {}, {}) if config.method == ZERO_SHOT else load_newest(holder)
    names = classnames or (saved.meta.get("classnames") if holder == source else None)
    if names is None:
        # Zero-shot, converted checkpoints and evaluations elsewhere: the dataset has the names.
        names = load_dataset(config.dataset, config.seed).classnames
    pretrained = load_clip(config.clip.weights, setup.compute_dtype(config))
    dataset = Dataset(Files(as_path(".")), tuple(names), [], [], [])
    experiment = setup.assemble(config, dataset, pretrained)
    if experiment.model.config.learns:
        saved = prompts_for(experiment, saved, str(source))
    return Predictor(experiment, saved, batch_size, source)


def read_classnames(file: epath.Path) -> list[str]:
    """Return the class names of a text file, one per line, see `check_classnames`.

    CoOp's lists of ImageNet have the WordNet id before each name.
    """
    with reading(file, "a list of class names"):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if all(re.match(r"n\d{8}\s", name) for name in names):
        names = [name.split(maxsplit=1)[1] for name in names]
    return check_classnames(names, str(file))


def export(config: ConfigDict, saved: Saved, source: epath.Path | None, target: epath.Path) -> None:
    """Write a prompt file, with the results of `source` if they belong to these prompts.

    Raises:
      UserError: There are no prompts, or the file has another suffix or cannot be written.
    """
    if target.suffix != SUFFIX:
        raise UserError(f"{target}: the name of a prompt file ends in {SUFFIX}.")
    if not saved.prompts:
        raise UserError(f"{target}: {config.method} has no prompts to write.")
    results = None
    if source and is_prompt_file(source):
        results = read_header(source)["results"]
    elif source and (source / RESULTS_FILE).is_file():
        try:
            results = read_current(source)
        except UserError as reason:
            say(f"written without results: {reason}")
    write_prompt_file(target, saved, config.to_dict(), results)


class Sight(NamedTuple):
    """The likeliest classes of an image, best first, and attention over its patches.

    Maps are (grid, grid). Each sums to 1 minus the attention to tokens other than patches.
    """

    image: np.ndarray  # (size, size, 3) uint8
    classes: Sequence[str]
    probability: np.ndarray  # of these classes
    zero_shot: np.ndarray  # their probability in zero-shot CLIP
    plain: np.ndarray  # of the class token in the last block of frozen CLIP
    prompted: np.ndarray | None  # the same with visual prompts, None for methods without them
    class_maps: Sequence[np.ndarray | None]  # of each class's prompt, None if it has none


def describe(predictor: Predictor, images: Images, top: int = TOP) -> list[Sight]:
    """Return the maps of each image, see `Predictor.predict_proba`, and its `top` classes."""
    grid, learned = predictor.model.clip_config.grid, predictor.model.config

    def patches(attention: np.ndarray) -> np.ndarray:
        """Select the patches: (…, 1 + patches + others) to (…, grid, grid)."""
        return attention[..., 1 : 1 + grid**2].reshape(*attention.shape[:-1], grid, grid)

    sights = []
    for batch, outputs in predictor.answers(images):
        probability, zero_shot = softmax(outputs.logits), softmax(outputs.zero_shot.logits)
        for i, image in enumerate(batch["image"]):
            best = np.argsort(-probability[i], kind="stable")[:top]
            maps: list[np.ndarray | None] = []
            if outputs.class_attention is not None:
                last = patches(outputs.class_attention[i, -1])
                by_class = dict(zip(outputs.zero_shot.indices[i].tolist(), last, strict=True))
                maps = [by_class.get(c) for c in best.tolist()]
            own = patches(outputs.attention[i].mean(0)) if learned.learns_images else None
            sights.append(
                Sight(
                    image,
                    [predictor.classnames[c] for c in best],
                    probability[i, best],
                    zero_shot[i, best],
                    plain=patches(outputs.zero_shot.attention[i].mean(0)),
                    prompted=own,
                    class_maps=maps,
                )
            )
    return sights


def nearest_words(predictor: Predictor, top: int) -> "pd.DataFrame":
    """Return a row of text with the `top` nearest words of each context vector of the first layer.

    Distances are Euclidean, between embeddings. The last column is the smallest distance, divided
    by the mean distance between two words. The class comes first if each has its own context.

    Raises:
      UserError: The method learns no context, or the context depends on the image.
    """
    import pandas as pd

    method = predictor.config.method
    if "text" not in predictor.prompts:
        raise UserError(f"{method} learns no context, so there are no words to explain.")
    if predictor.model.config.conditioned:
        raise UserError(
            f"the context of {method} depends on the image, so it has no fixed words to explain."
        )
    pretrained = predictor.pretrained
    embedding = distributed.to_host(pretrained.params["text"]["token_embedding"])
    vocabulary = np.asarray(embedding, np.float32)
    a, b = np.random.default_rng(0).integers(len(vocabulary), size=(2, PAIRS))
    usual = float(np.linalg.norm(vocabulary[a] - vocabulary[b], axis=-1)[a != b].mean())
    context = np.asarray(predictor.prompts["text"]["context"][0], np.float32)
    rows = []
    for place in np.ndindex(context.shape[:-1]):  # (class, vector), or (vector,) of all classes
        distance = np.linalg.norm(vocabulary - context[place], axis=-1)
        row = {"class": predictor.classnames[place[0]]} if context.ndim == 3 else {}
        row["context"] = str(place[-1] + 1)
        for i, token in enumerate(np.argsort(distance, kind="stable")[:top].tolist(), 1):
            word = pretrained.tokenizer.decode([token]).strip()
            row[f"nearest {i} (distance)"] = f"{word} ({distance[token]:.3f})"
        row["in word distances"] = f"{distance.min() / usual:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)
