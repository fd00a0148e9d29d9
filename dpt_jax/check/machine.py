"""What a machine has, whether hosts agree, and whether a folder or bucket stores files."""

import importlib.metadata
import os
import pathlib
import platform
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dpt_jax import distributed
from dpt_jax.check.rows import Row, failing
from dpt_jax.data.records import free_memory
from dpt_jax.errors import UserError
from dpt_jax.io import entries, file_system, is_remote, make_folder
from dpt_jax.training.checkpoints import Checkpoints, digest, load_newest

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "dpt-jax")
DRIVER = pathlib.Path("/proc/driver/nvidia/version")
# Variables and options of JAX that change what a step computes.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision")
GB = 1e9


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that is installed."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> list[Row]:
    """Return the first lines of the table: devices, hosts, memory and versions."""
    device = jax.local_devices()[0]
    facts = {
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "hosts": str(jax.process_count()),
        "cores": str(os.cpu_count()),
        "memory": f"{free_memory() / GB:.1f} GB free",
    }
    if stats := device.memory_stats():
        facts["memory of a device"] = f"{stats['bytes_limit'] / GB:.1f} GB"
    if DRIVER.exists():
        facts["driver"] = DRIVER.read_text().split("  ")[1]
    facts |= versions()
    return [Row("machine", name, figure) for name, figure in facts.items()]


def hosts(settings: Mapping[str, str]) -> list[Row]:
    """Compare versions and settings of all hosts, and sum over their devices.

    settings: options of the command, by name.
    """
    rows: list[Row] = []
    own = {**versions(), **settings}
    own |= {name: os.environ.get(name, "") for name in VARIABLES}
    own |= {name: str(jax.config.values[name]) for name in OPTIONS}
    figure, same = f"{jax.process_count()} hosts, {len(own)} values", True
    try:
        distributed.check_same(lambda: own)
    except UserError as reason:
        figure, same = str(reason).partition(":")[0], False
    rows.append(Row("hosts", "versions and settings", figure, "the same", same))
    with failing(rows, "hosts", "sum over devices"):
        devices, local = jax.device_count(), jax.local_device_count()
        add = jax.pmap(lambda x: jax.lax.psum(x, distributed.AXIS), distributed.AXIS)
        began = time.perf_counter()
        found = float(np.asarray(add(jnp.ones(local)).addressable_shards[0].data)[0])
        seconds = time.perf_counter() - began
        ok = found == devices
        rows.append(Row("hosts", "sum over devices", f"{found:.0f}, {seconds:.2f} s",
                        str(devices), ok))  # fmt: skip
    return rows


def storage(workdir: epath.Path) -> list[Row]:
    """Write, list, read, lock, save and delete in a new folder of a workdir, with times.

    All hosts use host 0's folder, with separate files.
    """
    number = distributed.sum_over_hosts(random.getrandbits(30) if distributed.is_first() else 0)
    folder, host = workdir / f"check-{number:08x}", jax.process_index()
    content, file, rows = os.urandom(2**20), folder / f"file-{host}", list[Row]()

    @contextmanager
    def timed(name: str, bound: str) -> Iterator[list[bool]]:
        began, held = time.perf_counter(), [True]
        with failing(rows, "storage", name):
            yield held
            seconds = time.perf_counter() - began
            rows.append(Row("storage", name, f"{seconds:.2f} s", bound, held[0]))

    with timed("write 1 MB", f"in {workdir}"):
        make_folder(folder, "--workdir")
        file.write_bytes(content)
    if not distributed.on_all_hosts(bool(rows[0].ok)):  # nothing else can work
        return rows
    with timed("list", "the files of all hosts") as held:
        every = {f"file-{i}" for i in range(jax.process_count())}
        held[0] = {name for name, _ in entries(folder)} >= every
    shared = distributed.on_all_hosts(bool(rows[1].ok))
    with timed("read", "what was written") as held:
        held[0] = file.read_bytes() == content
    with timed("exclusive create", "once only") as held:
        held[0] = [_create(folder / f"lock-{host}") for _ in range(2)] == [True, False]
    if shared:  # as hosts save and restore together
        with timed("checkpoint", "the same bits") as held:
            tree = {"prompts": np.arange(1000, dtype=np.float32)}
            with Checkpoints(folder) as checkpoints:
                checkpoints.save(1, tree, {})
                checkpoints.wait()
                held[0] = load_newest(folder).digest == digest(tree)
        distributed.on_all_hosts(True)  # all have read it
    if distributed.is_first() or not shared:
        with timed("delete", "nothing left") as held:
            if is_remote(folder):
                file_system(folder).rm(os.fspath(folder), recursive=True)
            else:
                shutil.rmtree(folder)
            held[0] = not folder.exists()
    return rows


def _create(file: epath.Path) -> bool:
    """Return whether a new file could be created exclusively."""
    try:
        if is_remote(file):
            file_system(file).pipe_file(os.fspath(file), b"1", mode="create")
        else:
            with open(file, "xb"):
                pass
    except FileExistsError:
        return False
    return True
