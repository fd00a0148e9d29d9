"""The devices of this machine, dealt out to processes of which each sees its own.

Who deals them out touches none: a process that starts the runtime of TPUs has all the chips.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

import jax

from dpt_jax.errors import UserError

Variables = Mapping[str, str]  # of the environment of a process

# How so many chips of a host lie together, as the runtime of TPUs wants to be told.
CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}
FIRST_PORT = 8476  # of those by which the processes of TPUs would find each other


class Machine(NamedTuple):
    """What a machine computes on.

    platform: cpu, gpu or tpu. devices: as JAX counts them. chips: what a process can have alone,
    which may have two devices (TPU v2, v3 and 7x).
    """

    platform: str
    devices: int
    chips: int


def look() -> Machine:
    """Return the machine, as a process sees it that ends at once and leaves the devices free.

    Raise UserError where they cannot be counted.
    """
    command = [sys.executable, "-c", "from dpt_jax.runtime import slots; slots.tell()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"the devices of this machine cannot be counted: {said[-1]}")
    return Machine(*json.loads(done.stdout.splitlines()[-1]))


def tell() -> None:
    """Print the machine for `look`, in the process that it has started."""
    found = jax.local_devices()
    chips = {str(getattr(device, "coords", device.id)) for device in found}
    print(json.dumps(Machine(found[0].platform, len(found), len(chips))))


def slots(
    machine: Machine, devices: int, environment: Mapping[str, str] = os.environ
) -> list[Variables]:
    """Return the variables of each process of so many devices, until all devices are dealt out.

    environment: that of this process, which may see only some of the machine's devices itself.
    Raise UserError for a number that the machine cannot be dealt out by.
    """
    count, rest = divmod(machine.devices, devices)
    if rest or machine.chips % count:
        pairs = ", two of which are one chip" if machine.chips < machine.devices else ""
        raise UserError(
            f"--devices-per-run={devices}: this machine has {machine.devices} "
            f"{machine.platform} devices{pairs}, which cannot be dealt out by {devices}."
        )
    if machine.platform == "cpu":
        return [{"JAX_NUM_CPU_DEVICES": str(devices)}] * count
    if count == 1:  # the process sees what this one would
        return [{}]
    visible = "TPU_VISIBLE_CHIPS" if machine.platform == "tpu" else "CUDA_VISIBLE_DEVICES"
    names = environment.get(visible, "").split(",")
    if names == [""]:
        names = [str(number) for number in range(machine.chips)]
    share = machine.chips // count
    own: list[Variables] = [
        {visible: ",".join(names[i * share : (i + 1) * share])} for i in range(count)
    ]
    if machine.platform != "tpu":
        return own
    if share not in CHIP_BOUNDS:
        raise UserError(
            f"--devices-per-run={devices}: a process takes one, two or four chips of a TPU, or all."
        )
    return [{**chips, **_alone(share, FIRST_PORT + i)} for i, chips in enumerate(own)]


def _alone(chips: int, port: int) -> Variables:
    """Return what tells the runtime of TPUs that these chips are all that there is."""
    return {
        "TPU_CHIPS_PER_PROCESS_BOUNDS": CHIP_BOUNDS[chips],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "CLOUD_TPU_TASK_ID": "0",
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": str(port),
        # It takes four chips for all of a host, and would let no other process in.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
