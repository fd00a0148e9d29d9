"""Small models and runs that many tests share."""

import functools
import gc
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator

import filelock
import jax
import pytest
from absl import flags

import dpt_jax
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.data.folder import find_images
from dpt_jax.io import as_path
from tests.helpers import make_clip
from tests.helpers.commands import COMPILATION, in_process
from tests.helpers.configs import IMAGES, small_flags
from tests.helpers.object_store import make_bucket, object_store

BUCKETS = itertools.count(1)

# Grain reads its own flags, which only a command parses.
flags.FLAGS.mark_as_parsed()

for option, value in COMPILATION.items():
    jax.config.update(option, value)


def pytest_collection_finish() -> None:
    """Collect garbage rarely: it would take a third of the time of tracing."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[pathlib.Path], None]], pathlib.Path]:
    """A named folder, made for all pytest-xdist workers by the first that needs it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def once(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
        with filelock.FileLock(shared / f"{name}.lock"):
            if not (shared / name).exists():
                make(shared / name)
        return shared / name

    return once


@pytest.fixture(scope="session")
def clip_dir(made_once) -> pathlib.Path:
    """The small random CLIP that the golden arrays were computed with."""
    return made_once("clip", make_clip.write)


@pytest.fixture(scope="session")
def tiny_clip_dir(made_once) -> pathlib.Path:
    """A CLIP of three and two narrow layers, for tests with thousands of images or names."""
    return made_once("tiny", functools.partial(make_clip.write, seed=3, **make_clip.TINY))


@pytest.fixture(scope="session")
def golden_clip_dir(made_once) -> Callable[[dict], pathlib.Path]:
    """Return the small random CLIP that the `meta` of golden arrays names."""

    def folder(meta):
        name = "-".join(map(str, ("golden", meta["wseed"], *meta["clip"].values())))
        write = functools.partial(make_clip.write, seed=meta["wseed"], **meta["clip"])
        return made_once(name, write)

    return folder


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """The URL of a store that gcsfs and TensorStore use in place of Google's, also in children."""
    with object_store() as url:
        os.environ |= {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
        yield url


@pytest.fixture
def bucket(store) -> str:
    """The gs:// name of a new bucket."""
    return make_bucket(store, f"bucket-{next(BUCKETS)}")


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path) -> pathlib.Path:
    """Where a new run is to be, on a disk or in a bucket."""
    if request.param == "disk":
        return tmp_path
    return as_path(request.getfixturevalue("bucket")) / "run"


@pytest.fixture(scope="session")
def clip(clip_dir) -> Pretrained:
    return load_clip(str(clip_dir))


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_dir) -> Pretrained:
    return load_clip(str(tiny_clip_dir))


@pytest.fixture(scope="session")
def trained(clip_dir, made_once) -> pathlib.Path:
    """The workdir of a short training of DPT on the small images, with its results."""
    own = {"dataset__shots": -1, "train__epochs": 2, "eval__save_logits": True}
    own |= {"text_prompt__length": 4, "visual_prompt__length": 3, "cavpt__top_k": 3}
    train = functools.partial(in_process, "main.py", "--config=dpt:folder")
    flags = small_flags(clip_dir, **own)
    return made_once("trained", lambda workdir: train(*flags, f"--workdir={workdir}"))


@pytest.fixture(scope="session")
def predictor(trained) -> dpt_jax.Predictor:
    return dpt_jax.load(trained, batch_size=4)


@pytest.fixture(scope="session")
def files() -> list[str]:
    return find_images([str(IMAGES / "test")])
