"""An error on one of two hosts ends both within seconds, or the run of a sweep on both."""

import functools
import json
import shutil
import signal
import time

import pytest

from dpt_jax.storage.lock import locked
from dpt_jax.training.signals import EXIT_CODE
from tests.helpers import hosts as two_hosts
from tests.helpers.golden import SMALL
from tests.helpers.hosts import Watched, start

pytestmark = pytest.mark.process

# How hosts end is the same for all methods, and this one starts first.
start_hosts = functools.partial(two_hosts.start_hosts, method="coop")

SECONDS = 10  # within which both hosts end, where nothing else keeps the processors busy
AT_MOST = 60  # also on a machine that runs other tests

# A disk that takes small files only, as a full one does: checkpoints do not fit any more.
FULL = """
import os, resource, runpy, sys
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
sys.argv = ["main.py", *sys.argv[1:]]
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
runpy.run_path("main.py", run_name="__main__")
"""
# Ctrl-C while the data are loaded.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in the background ignores it
sys.argv = ["main.py", *sys.argv[1:]]
from dpt_jax.training import setup as experiment
experiment.load_dataset = lambda *_: os.kill(os.getpid(), signal.SIGINT)
import runpy
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.fixture
def images(tmp_path):
    shutil.copytree(SMALL / "images", tmp_path / "images")
    return tmp_path / "images"


def damage(images, split, number):
    """Make an image unreadable, which is the so-manieth of its split: host 1 reads odd ones."""
    file = sorted((images / split).rglob("*.png"))[number]
    file.write_bytes(b"not a picture")
    return file


def assert_both_end(hosts, code, says, since):
    """With this code, one sentence that names the host, and within seconds."""
    moment = hosts.when(since)
    assert hosts.codes(timeout=60) == [code, code], hosts.outputs()
    took = time.monotonic() - moment
    for output in hosts.outputs():
        last = output.splitlines()[-1]
        assert says in last
        assert last.startswith("error: host "), output
        assert "Traceback" not in output
    assert took < AT_MOST
    return took


def unreadable_test_image(clip_dir, tmp_path, images):
    damage(images, "test", 1)
    options = ["--config.train.epochs=1", f"--config.dataset.root={images}"]
    hosts = Watched(start_hosts(clip_dir, tmp_path / "run", *options))
    return assert_both_end(hosts, 2, "cannot be read", since="error: host 1 of 2")


def unreadable_training_image(clip_dir, tmp_path, images):
    damage(images, "train", 1)
    hosts = Watched(start_hosts(clip_dir, tmp_path / "run", f"--config.dataset.root={images}"))
    return assert_both_end(hosts, 2, "cannot be read", since="error: host ")


def held_lock(clip_dir, tmp_path, images):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        hosts = Watched(start_hosts(clip_dir, tmp_path / "run"))
        return assert_both_end(hosts, 2, "is being trained in by process", "error: host 0 of 2")


def other_images(clip_dir, tmp_path, images):
    """A copy of the data on the disk of each host, of which one is not whole."""
    shutil.copytree(images, tmp_path / "second" / "images")
    next((tmp_path / "second" / "images" / "test").rglob("*.png")).unlink()
    homes = [{"HOME": str(images.parent)}, {"HOME": str(tmp_path / "second")}]
    root = "--config.dataset.root=~/images"
    hosts = Watched(start_hosts(clip_dir, tmp_path / "run", root, variables=homes))
    says = "host 1 has another list of images (dataset.root, dataset.sample) than host 0"
    return assert_both_end(hosts, 2, says, since="error: host ")


def full_disk(clip_dir, tmp_path, images):
    hosts = Watched(start_hosts(clip_dir, tmp_path / "run", scripts=(FULL, None)))
    return assert_both_end(hosts, 2, "cannot be written", since="error: host 0 of 2")


def ctrl_c_while_loading(clip_dir, tmp_path, images):
    hosts = Watched(start_hosts(clip_dir, tmp_path / "run", scripts=(None, INTERRUPTED)))
    return assert_both_end(hosts, 130, "host 1 of 2", since="error: host 1 of 2")


def ctrl_c_while_training(clip_dir, tmp_path, images):
    hosts = Watched(start_hosts(clip_dir, tmp_path / "run", "--config.train.epochs=2000"))
    hosts.when("epoch 2/", 0)
    hosts.processes[1].send_signal(signal.SIGINT)
    moment = time.monotonic()
    assert hosts.codes(timeout=60) == [EXIT_CODE, EXIT_CODE], hosts.outputs()
    took = time.monotonic() - moment
    assert took < AT_MOST
    assert "and saved: the same command goes on there" in hosts.outputs()[0]
    return took


FAULTS = [
    unreadable_test_image,
    unreadable_training_image,
    held_lock,
    other_images,
    full_disk,
    ctrl_c_while_loading,
    ctrl_c_while_training,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_error_on_one_host_ends_both(fault, clip_dir, tmp_path, images):
    fault(clip_dir, tmp_path, images)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_five_times_each(fault, clip_dir, tmp_path):
    seconds = []
    for i in range(5):
        folder = tmp_path / str(i)
        shutil.copytree(SMALL / "images", folder / "images")
        seconds.append(fault(clip_dir, folder, folder / "images"))
    print(f"{fault.__name__}: 5 of 5, {min(seconds):.1f} to {max(seconds):.1f} s")
    assert max(seconds) < SECONDS


def test_hosts_of_different_sizes_end_in_a_sentence(clip_dir, tmp_path):
    hosts = Watched(start_hosts(clip_dir, tmp_path / "run", devices=(2, 1)))
    says = "different numbers of devices (host 0 has 2, host 1 has 1)"
    assert_both_end(hosts, 2, says, since="error: host ")


def test_a_run_of_a_sweep_that_fails_on_one_host_ends_on_both_and_they_go_on(
    clip_dir, tmp_path, images
):
    """Both CoOp runs meet an unreadable training image; zero-shot does not."""
    damage(images, "train", 1)
    command = ["-m", "dpt_jax", "sweep", "--methods=coop,zeroshot", "--datasets=folder"]
    command += ["--shots=-1", "--seeds=1,2", f"--runs={tmp_path / 'runs'}"]
    command += [f"--config.dataset.root={images}", f"--config.clip.weights={clip_dir}"]
    command += ["--config.text_prompt.length=2", "--config.train.batch_size=6"]
    hosts = Watched(start(command))
    assert hosts.codes() == [1, 1], hosts.outputs()
    first, second = hosts.outputs()
    assert "1 of 3 runs are finished" in first
    assert first.count("cannot be read") >= 2
    found = [json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("results.json")]
    assert [result["method"] for result in found] == ["zeroshot"]
    assert "Traceback" not in first + second
