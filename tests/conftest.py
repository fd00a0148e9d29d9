"""Small models and runs that many tests share."""

import itertools
import os
import pathlib
from collections.abc import Iterator

import jax
import pytest
from absl import flags

import dpt_jax
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.data.folder import find_images
from tests.helpers import make_clip
from tests.helpers.commands import COMPILATION, in_process
from tests.helpers.golden import SMALL
from tests.helpers.object_store import ObjectStore

BUCKETS = itertools.count(1)

# Grain reads its own flags, which only a command parses.
flags.FLAGS.mark_as_parsed()

for option, value in COMPILATION.items():
    jax.config.update(option, value)


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory) -> pathlib.Path:
    """The small random CLIP that the golden arrays were computed with."""
    directory = tmp_path_factory.mktemp("clip")
    make_clip.write(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory) -> pathlib.Path:
    """A CLIP of three and two narrow layers, for what takes thousands of images or names."""
    directory = tmp_path_factory.mktemp("tiny")
    make_clip.write(directory, seed=3, **make_clip.TINY)
    return directory


@pytest.fixture(scope="session")
def store() -> Iterator[ObjectStore]:
    """An object store, which this process and those that it starts ask in place of Google's."""
    started = ObjectStore()
    os.environ |= started.environment
    yield started
    started.stop()


@pytest.fixture
def bucket(store) -> str:
    """The gs:// name of a new bucket."""
    return store.bucket(f"bucket-{next(BUCKETS)}")


@pytest.fixture(scope="session")
def clip(clip_dir) -> Pretrained:
    return load_clip(str(clip_dir))


@pytest.fixture(scope="session")
def trained(clip_dir, tmp_path_factory) -> pathlib.Path:
    """The workdir of a short training of DPT on the small images, with its results."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    in_process(
        "main.py",
        "--config=configs/dpt.py:folder",
        f"--config.clip.weights={clip_dir}",
        f"--config.dataset.root={SMALL / 'images'}",
        "--config.dataset.shots=-1",
        "--config.train.epochs=2",
        "--config.text_prompt.length=4",
        "--config.visual_prompt.length=3",
        "--config.cavpt.top_k=3",
        "--config.eval.save_logits=True",
        f"--workdir={workdir}",
    )
    return workdir


@pytest.fixture(scope="session")
def predictor(trained) -> dpt_jax.Predictor:
    return dpt_jax.load(trained, batch_size=4)


@pytest.fixture(scope="session")
def files() -> list[str]:
    """The small images to test on."""
    return find_images([str(SMALL / "images" / "test")])
