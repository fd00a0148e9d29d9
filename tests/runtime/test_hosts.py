"""Runs of two processes on loopback, two simulated devices each."""

import contextlib
import json
import shutil
import time

import jax
import numpy as np
import pytest

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.signals import EXIT_CODE
from tests.helpers.commands import command, in_process
from tests.helpers.hosts import SETTINGS, finish, start_hosts

pytestmark = pytest.mark.process

METHOD = "dptsrc"
# All that hosts share: DPT's class-aware prompts, a context of each image, tokens that carry on,
# texts to hold to, an average of epochs.
OF_RELATIVES = [
    "--config.text_prompt.conditioned=True",
    "--config.text_prompt.depth=2",
    "--config.visual_prompt.depth=2",
    "--config.loss.template=a photo of a {}.|a drawing of a {}.",
    "--config.train.average_mean=6",
    "--config.train.average_deviation=3",
]


def start_both(clip_dir, workdir, *arguments, slurm=False):
    return start_hosts(clip_dir, workdir, *OF_RELATIVES, *arguments, method=METHOD, slurm=slurm)


@pytest.fixture(scope="module")
def two_hosts(clip_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("hosts") / "run"
    return workdir, finish(start_both(clip_dir, workdir))


def predictions(workdir):
    return dict(np.load(workdir / "predictions.npz"))


def run_on_one_host(clip_dir, workdir):
    """With as many devices as two have."""
    settings = [*SETTINGS, f"--config.clip.weights={clip_dir}", *OF_RELATIVES]
    return command(
        "main.py",
        f"--config=configs/{METHOD}.py:folder",
        *settings,
        f"--workdir={workdir}",
        devices=4,
    )


def assert_nearly_the_same(workdir, other):
    """To rounding: prompts and predictions of one host and of two."""
    one, two = load_newest(workdir).prompts, load_newest(other).prompts
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)
    found, expected = predictions(workdir), predictions(other)
    for name in ("label", "path", "classnames"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-3)


def test_two_hosts_compute_what_one_does(two_hosts, clip_dir, tmp_path):
    """18 test images cannot be shared equally by batches of 8 on 4 devices."""
    run_on_one_host(clip_dir, tmp_path)
    assert_nearly_the_same(two_hosts[0], tmp_path)


def test_the_first_host_tells_and_writes(two_hosts):
    workdir, (first, second) = two_hosts
    assert "4 cpu devices of 2 hosts" in first
    assert "test images right" in first
    assert "epoch" not in second
    assert "results" not in second
    records = [
        json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert records == sorted(set(records))
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1


def test_a_run_that_is_stopped_and_then_killed_on_one_host_ends_with_the_same_bits(
    two_hosts, clip_dir, tmp_path
):
    """SIGTERM to the second host alone, as if it were preempted: both save the same step.

    One host that goes on in their place ends there too, to rounding.
    """
    workdir = tmp_path / "run"
    first, second = processes = start_both(clip_dir, workdir)
    output = ""
    for line in first.stdout:
        output += line
        if "epoch 2/" in line:
            break
    second.terminate()
    rest = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_CODE, EXIT_CODE], [output, *rest]
    stopped = load_newest(workdir).step
    assert f"stopped at step {stopped} of 24 and saved" in rest[0]
    shutil.copytree(workdir, tmp_path / "alone")
    done = run_on_one_host(clip_dir, tmp_path / "alone")
    assert f"going on at step {stopped} of 24" in done.stdout
    assert_nearly_the_same(tmp_path / "alone", two_hosts[0])
    # Both go on from there, until the second host dies without a word.
    first, second = processes = start_both(clip_dir, workdir)
    try:
        deadline = time.monotonic() + 120
        while newest_step(workdir) == stopped:
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.02)
        second.kill()
        output = first.communicate(timeout=4 * distributed.HEARTBEAT_SECONDS)[0]
        assert f"going on at step {stopped} of 24" in output
        assert first.returncode != 0
        assert not (workdir / "results.json").exists()
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    output, _ = finish(start_both(clip_dir, workdir))
    assert "going on at step" in output
    jax.tree.map(
        np.testing.assert_array_equal,
        load_newest(workdir).prompts,
        load_newest(two_hosts[0]).prompts,
    )
    np.testing.assert_array_equal(
        predictions(workdir)["logits"], predictions(two_hosts[0])["logits"]
    )


def newest_step(workdir):
    """That of the newest whole checkpoint: until then, its name goes on after the number."""
    names = [folder.name for folder in (workdir / "checkpoints").iterdir()]
    return max(int(name) for name in names if name.isdigit())


@pytest.mark.parametrize("slurm", [False, True])
def test_evaluation_on_two_hosts(slurm, two_hosts, clip_dir):
    workdir, _ = two_hosts
    expected = predictions(workdir)
    (workdir / "predictions.npz").unlink()
    outputs = finish(start_both(clip_dir, workdir, "--mode=eval", slurm=slurm))
    # They have found each other: only one of them tells.
    assert ["test images right" in output for output in outputs] == [True, False]
    np.testing.assert_array_equal(predictions(workdir)["logits"], expected["logits"])


@pytest.mark.parametrize(
    "hosts",
    [
        distributed.Hosts(coordinator="localhost:1"),
        distributed.Hosts(processes=2, process=0),
        distributed.Hosts("localhost:1", 2, 0, cluster=True),
    ],
)
def test_contradicting_hosts_are_refused(hosts):
    with pytest.raises(
        UserError, match="--coordinator, --processes and --process together, or --cluster alone"
    ):
        distributed.connect(hosts)


def test_a_cluster_that_is_none_is_told_so():
    done = in_process("main.py", "--cluster", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the processes of this run could not be connected")
