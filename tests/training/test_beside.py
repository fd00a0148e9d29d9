"""Runs of a sweep beside each other: each in a process with devices of its own, and one console."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from dpt_jax.errors import UserError
from dpt_jax.runtime import slots
from dpt_jax.runtime.slots import Machine
from dpt_jax.training.beside import sweep_beside
from dpt_jax.training.grid import plan
from tests.helpers.commands import ROOT, in_process, simulated
from tests.helpers.forks import Fork
from tests.helpers.golden import SMALL

# A worker that speaks as one and trains nothing.
WORKER = r"""
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
for line in sys.stdin:
    print("at", line.strip(), "with", os.environ["OWN"], flush=True)
    EXTRA
    print("\x1e" + json.dumps({"failed": "", "elsewhere": False, "made": 1}), flush=True)
"""
SLOTS = [{"OWN": "a"}, {"OWN": "b"}]


def worker(extra="pass"):
    return [sys.executable, "-c", WORKER.replace("EXTRA", extra)]


class Words:
    """Says how many runs are ahead, in place of their time."""

    def __init__(self):
        self.ended = []

    def ran(self, run, seconds):
        self.ended.append(run)

    def words(self, ahead, at_once):
        return f", {len(ahead)} ahead for {at_once}"


def runs(*datasets, seeds=2):
    return plan("few-shot", ["coop"], datasets, [], [1], range(1, seeds + 1))


@pytest.mark.parametrize(
    ("machine", "devices", "environment", "expected"),
    [
        (Machine("cpu", 4, 4), 2, {}, [{"JAX_NUM_CPU_DEVICES": "2"}] * 2),
        (Machine("gpu", 2, 2), 1, {}, [{"CUDA_VISIBLE_DEVICES": i} for i in "01"]),
        (
            Machine("gpu", 4, 4),
            2,
            {"CUDA_VISIBLE_DEVICES": "4,5,6,7"},
            [{"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"}],
        ),
        (Machine("gpu", 1, 1), 1, {}, [{}]),
        (Machine("tpu", 8, 8), 8, {}, [{}]),
    ],
)
def test_each_process_sees_its_own_devices(machine, devices, environment, expected):
    assert slots.slots(machine, devices, environment) == expected


@pytest.mark.parametrize(
    ("machine", "devices", "chips", "bounds"),
    [
        (Machine("tpu", 8, 8), 1, list("01234567"), "1,1,1"),
        (Machine("tpu", 8, 8), 4, ["0,1,2,3", "4,5,6,7"], "2,2,1"),
        (Machine("tpu", 8, 4), 2, list("0123"), "1,1,1"),  # two devices to a chip
        (Machine("tpu", 8, 4), 4, ["0,1", "2,3"], "1,2,1"),
    ],
)
def test_each_process_has_its_own_chips_and_port(machine, devices, chips, bounds):
    found = slots.slots(machine, devices, {})
    assert [one["TPU_VISIBLE_CHIPS"] for one in found] == chips
    assert {one["TPU_CHIPS_PER_PROCESS_BOUNDS"] for one in found} == {bounds}
    assert {one["TPU_PROCESS_BOUNDS"] for one in found} == {"1,1,1"}
    ports = [one["TPU_PROCESS_PORT"] for one in found]
    assert len(set(ports)) == len(found)
    assert [one["TPU_PROCESS_ADDRESSES"] for one in found] == [f"localhost:{p}" for p in ports]


@pytest.mark.parametrize(
    ("machine", "devices", "says"),
    [
        (Machine("gpu", 8, 8), 3, "has 8 gpu devices, which cannot be dealt out by 3"),
        (Machine("tpu", 8, 4), 1, "has 8 tpu devices, two of which are one chip"),
        (Machine("tpu", 12, 12), 6, "one, two or four chips of a TPU, or all"),
    ],
)
def test_devices_that_cannot_be_dealt_out(machine, devices, says):
    with pytest.raises(UserError, match=says):
        slots.slots(machine, devices, {})


@pytest.mark.process
def test_a_slot_goes_on_with_its_dataset_and_the_own_part_comes_first(capsys):
    first, others = runs("dtd", "eurosat", seeds=3), runs("emoji", seeds=1)
    # Seconds apart, so that neither waits for the other at a start.
    assert sweep_beside(first, others, worker("time.sleep(0.05)"), SLOTS, Words()) == (
        [],
        [],
    )
    said = capsys.readouterr().out.splitlines()
    begun = [line.partition(" on ") for line in said if "] run " in line]
    at = {
        slot: [after for before, _, after in begun if before.startswith(slot)]
        for slot in ("[1]", "[2]")
    }
    assert [line.split(",")[0] for line in at["[1]"]][:3] == ["dtd"] * 3
    assert [line.split(",")[0] for line in at["[2]"]][:3] == ["eurosat"] * 3
    assert begun[-1][2].startswith("emoji")
    # Each worker has the variables of its slot, and its lines say whose they are.
    assert {line[:3] for line in said if line.endswith("with a")} == {"[1]"}
    assert {line[:3] for line in said if line.endswith("with b")} == {"[2]"}


@pytest.mark.process
def test_the_console_says_what_is_left_of_the_whole_sweep(capsys):
    planned, words = runs("dtd"), Words()
    assert sweep_beside(planned, [], worker("time.sleep(0.2)"), SLOTS[:1], words) == ([], [])
    assert words.ended == planned
    said = [line for line in capsys.readouterr().out.splitlines() if " ahead" in line]
    assert said == [
        f"[1] run {number} of 2, {ahead} ahead for 1: {run}"
        for number, ahead, run in zip((1, 2), (2, 1), planned, strict=True)
    ]


@pytest.mark.process
def test_a_process_that_dies_takes_one_run_with_it(capsys):
    planned = runs("dtd", "eurosat")
    dies = 'line.strip() in "03" and (print("no", "room", flush=True), os.kill(os.getpid(), 9))'
    failed, elsewhere = sweep_beside(planned, [], worker(dies), SLOTS, Words())
    assert sorted(run for run, _ in failed) == [planned[0], planned[3]] and not elsewhere
    expected = "its process was killed by SIGKILL, as the system does when memory is short; "
    assert {why for _, why in failed} == {f"{expected}the last that it said: no room"}
    assert "[1]   failed: its process was killed" in capsys.readouterr().out


@pytest.mark.process
@pytest.mark.parametrize(
    ("extra", "code"), [("time.sleep(60)", 75), ("os.kill(os.getpid(), 9)", 128 + signal.SIGTERM)]
)
def test_a_signal_reaches_all_and_the_exit_code_is_theirs(extra, code, capsys):
    """75 where one of them has saved; else as a process that the signal has killed."""
    if code != 75:  # they die of it before they have anything to save
        extra = "signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(60)"
    stopper = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    stopper.start()
    began = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        sweep_beside(runs("dtd", "eurosat"), [], worker(extra), SLOTS, Words())
    assert stopped.value.code == code and time.monotonic() - began < 30
    said = capsys.readouterr().out
    assert said.count("] run ") == 2 and "failed" not in said


def test_a_worker_whose_sweep_has_died_stops_its_run():
    """As after a SIGTERM, so that it saves and frees the lock of its workdir."""
    script = (
        "import signal, sys, time\n"
        "from dpt_jax.training.beside import serve\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "serve(['one'], lambda run: print('began', flush=True) or time.sleep(60))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=simulated(1),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    process.stdin.write("0\n")
    process.stdin.flush()
    assert process.stdout.readline() == "began\n"
    process.stdin.close()
    assert process.wait(30) == 75


def test_the_hosts_of_one_run_have_no_devices_to_deal_out(tmp_path):
    arguments = ["--devices-per-run=1", "--cluster", f"--runs={tmp_path}"]
    done = in_process("-m", "dpt_jax", "sweep", *arguments, check=False)
    assert done.returncode == 2
    assert "start a sweep on each, with --part=I/N" in done.stderr


def sweep_of(clip_dir, seeds, epochs):
    """Return the arguments of a sweep on the small images."""
    return [
        *("-m", "dpt_jax", "sweep", "--methods=coop", "--datasets=folder", "--shots=1"),
        f"--seeds={seeds}",
        f"--config.clip.weights={clip_dir}",
        f"--config.dataset.root={SMALL / 'images'}",
        "--config.text_prompt.length=2",
        f"--config.train.epochs={epochs}",
        "--config.checkpoint.every_steps=2",
    ]


@pytest.mark.process
@pytest.mark.compiles
def test_two_runs_at_a_time_have_the_bits_of_one_after_the_other(clip_dir, tmp_path, monkeypatch):
    """On two simulated devices, of which each run has one, as the sweep in this process has."""
    assert jax.device_count() == 1
    arguments = sweep_of(clip_dir, seeds="1,2", epochs=2)
    apart, beside = tmp_path / "apart", tmp_path / "beside"
    in_process(*arguments, f"--runs={apart}")
    for name, value in simulated(2).items():
        monkeypatch.setenv(name, value)
    done = in_process(*arguments, f"--runs={beside}", "--devices-per-run=1")
    assert "2 of 2 runs are finished" in done.stdout
    for slot in "12":
        assert f"[{slot}] Training coop on 6 images of 6 classes" in done.stdout
    assert done.stdout.count(" 1 cpu device,") == 2
    found = sorted(file.relative_to(apart) for file in apart.rglob("results.json"))
    assert len(found) == 2
    for file in found:  # which has the digest of the prompts too
        assert json.loads((beside / file).read_text()) == json.loads((apart / file).read_text())


@pytest.mark.slow
def test_a_part_that_is_killed_and_started_again_changes_no_report(clip_dir, tmp_path):
    arguments = sweep_of(clip_dir, seeds="1,2,3", epochs=12)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    in_process(*arguments, f"--runs={alone}")
    first, second = (
        Fork([*arguments, f"--runs={shared}", f"--part={part}/2"], cwd=ROOT, env=simulated(1))
        for part in (1, 2)
    )
    for line in first.stdout:
        if line.startswith("epoch 4/"):
            break
    first.kill()
    assert first.wait(60) == -signal.SIGKILL
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    again = in_process(*arguments, f"--runs={shared}", "--part=1/2")
    assert "3 of 3 runs are finished" in again.stdout
    assert "going on at step" in said + again.stdout
    for runs_of in (alone, shared):
        in_process("-m", "dpt_jax", "report", str(runs_of))
    for name in ("report.md", "report.csv"):
        assert (shared / name).read_text() == (alone / name).read_text()
    for file in alone.rglob("results.json"):
        assert (shared / file.relative_to(alone)).read_text() == file.read_text()
