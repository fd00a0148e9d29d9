"""Tiny copies of the paper's datasets through the program: to results, or to batches."""

import json
import pathlib

from dpt_jax import settings
from dpt_jax.clip.preprocessing import CLIP_PREPROCESSING
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.data import loader
from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.dataset import load_dataset
from dpt_jax.evaluation.metrics import distinct
from dpt_jax.methods import METHODS
from dpt_jax.training.setup import learned_layout, plain_layouts
from dpt_jax.training.train_files import check_trainable
from tests.helpers.commands import command, in_process

# These go through the command line to their results: one to train on, one with 1,000 names or
# TensorFlow in the process, one of each source that is only tested on. A start and a compilation
# cost more than the rest of the test.
BY_COMMAND = {("coop", "dtd"), ("coop", "imagenet_r"), ("tfds", "imagenet"), ("tfds", "ucf101")}


def run_dataset(
    name: str, source: str, root: pathlib.Path, weights: pathlib.Path, workdir: pathlib.Path
) -> dict:
    """Run CoOp on a dataset of the paper for a step, or plain CLIP if there is nothing to train on.

    Return its results; of a dataset that is not in BY_COMMAND, what they say of the images that
    the loader gives and of the classes whose texts CLIP takes.
    """
    method = "coop" if CATALOGUE[name].trainable else "zeroshot"
    values = {
        "dataset.source": source,
        "dataset.root": str(root),
        "clip.weights": str(weights),
        "train.epochs": 1,
        "dataset.shots": 1,
        "train.batch_size": 1000,  # one step, also on ImageNet's classes
    }
    if METHODS[method].parts:
        values["text_prompt.length"] = 2
    if (source, name) in BY_COMMAND:
        flags = [f"--config.{key}={value}" for key, value in values.items()]
        file = f"--config=configs/{method}.py:{name}"
        # TensorFlow stays out of this process.
        start = command if (source, name) == ("tfds", "ucf101") else in_process
        start("main.py", file, f"--workdir={workdir}", *flags)
        results = json.loads((workdir / "results.json").read_text())
        assert (results["dataset"], results["method"]) == (name, method)
        return results
    config = settings.of_method(method, name)
    for key, value in values.items():
        settings.set_key(config, key, value)
    settings.check(config)
    dataset, clip = load_dataset(config.dataset, config.seed), load_clip(str(weights))
    common = {"read": dataset.read, "size": 32, "preprocessing": CLIP_PREPROCESSING}
    if METHODS[method].parts:
        check_trainable(dataset, name)
        training = loader.TrainLoading(
            **common, examples=dataset.train, batch_size=1000, epochs=1, seed=1
        )
        (batch,) = loader.train_batches(training)
        assert sorted(batch["label"].tolist()) == list(range(len(dataset.classnames)))
        prompts = settings.prompt_config(config, len(dataset.classnames), clip.config.vision.layers)
        learned_layout(config, prompts, dataset.classnames, clip)
    plain_layouts(config, dataset.classnames, clip)
    testing = loader.Loading(**common, examples=dataset.test, batch_size=64)
    images = sum(len(batch["label"]) for batch in loader.test_batches(testing))
    return {"per_class": dict.fromkeys(distinct(dataset.classnames)), "n": images}
