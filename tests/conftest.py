"""Small models and runs that many tests share."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from absl import flags

from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.data.catalogue import CATALOGUE
from tests import make_clip

ROOT = pathlib.Path(__file__).parent.parent
DATA = pathlib.Path(__file__).parent / "data"
SMALL = DATA / "dpt_small"

# Grain reads its own flags, which only a command parses.
flags.FLAGS.mark_as_parsed()

# Programs compiled by one test serve the others, also those that run commands and those of other test processes.
if "TEST_COMPILATION_CACHE" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["TEST_COMPILATION_CACHE"] = COMPILED.name
COMPILATION = {
    "jax_compilation_cache_dir": os.environ["TEST_COMPILATION_CACHE"],
    "jax_persistent_cache_min_compile_time_secs": 0.1,
}
for option, value in COMPILATION.items():
    jax.config.update(option, value)


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory) -> pathlib.Path:
    """The small random CLIP that the golden arrays were computed with."""
    directory = tmp_path_factory.mktemp("clip")
    make_clip.write(directory)
    return directory


@pytest.fixture(scope="session")
def clip(clip_dir) -> Pretrained:
    return load_clip(str(clip_dir))


@pytest.fixture(scope="session")
def trained(clip_dir, tmp_path_factory) -> pathlib.Path:
    """The workdir of a short training of DPT on the small images, with its results."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    command("main.py", "--config=configs/dpt.py:folder", f"--config.clip.weights={clip_dir}",
            f"--config.dataset.root={SMALL / 'images'}", "--config.dataset.shots=-1", "--config.train.epochs=2",
            "--config.text_prompt.length=4", "--config.visual_prompt.length=3", "--config.cavpt.top_k=3",
            "--config.eval.save_logits=True", f"--workdir={workdir}", XLA_FLAGS=QUICKLY_COMPILED)  # fmt: skip
    return workdir


class Golden:
    """One file of golden arrays and what its `meta` says."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(DATA / f"{name}.npz")
        self.meta = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(f"{prefix}/"): self.arrays[k] for k in self.arrays.files if k.startswith(f"{prefix}/")}


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process with so many CPU devices."""
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    return env | {name.upper(): str(value) for name, value in COMPILATION.items()} | {"HF_HUB_OFFLINE": "1"}


def command(
    *arguments: str,
    devices: int = 1,
    check: bool = True,
    without: Sequence[str] = (),
    cwd: pathlib.Path = ROOT,
    **environment: str,
) -> subprocess.CompletedProcess:
    """`python ARGUMENTS…` on simulated CPU devices, from the root of the repository or with it on the path.

    without: variables that it does not get.
    """
    env = {**simulated(devices), "PYTHONPATH": str(ROOT), **environment}
    env = {name: value for name, value in env.items() if name not in without}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def assert_refused(done: subprocess.CompletedProcess, says: str) -> None:
    """A command has ended with one sentence that says this, as for wrong input."""
    assert done.returncode == 2, done.stderr
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# For runs whose numbers nobody looks at: most of their time is compilation.
QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def run_dataset(name: str, source: str, root: pathlib.Path, weights: pathlib.Path, workdir: pathlib.Path) -> dict:
    """main.py on a dataset of the paper: trains CoOp for an epoch, or zero-shot where there is nothing to train on."""
    train = ["--config.text_prompt.length=2", "--config.train.epochs=1", "--config.dataset.shots=1"]
    train += ["--config.train.batch_size=1000"]  # one step, also on ImageNet's classes
    method, options = ("coop", train) if CATALOGUE[name].trainable else ("zeroshot", [])
    command("main.py", f"--config=configs/{method}.py:{name}", f"--config.dataset.source={source}",
            f"--config.dataset.root={root}", f"--config.clip.weights={weights}", f"--workdir={workdir}",
            *options, XLA_FLAGS=QUICKLY_COMPILED)  # fmt: skip
    results = json.loads((workdir / "results.json").read_text())
    assert (results["dataset"], results["method"]) == (name, method)
    return results


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected value."""
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())
