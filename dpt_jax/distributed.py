"""The hosts and devices of a run, what is placed on them, and the programs compiled for them.

Arrays on devices have a leading axis of this host's devices, as for jax.pmap.
"""

import collections
import functools
import hashlib
import itertools
import os
import pathlib
import platform
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dpt_jax.errors import USER_ERROR, UserError
from dpt_jax.io import cache_folder, short
from dpt_jax.version import __version__

# Arrays by name; `label` has a row for each image.
Batch = dict[str, Any]
PyTree = Any

AXIS = "batch"  # the axis of pmap: every device of every host
KEPT_PROGRAMS = 64  # for runs of a process that differ only in their data
# The other hosts end this long after a process has ended or hangs.
HEARTBEAT_SECONDS, SHUTDOWN_SECONDS = 20, 60
CONNECT_SECONDS = 300.0  # how long the processes of a run wait for each other at the start
# Variables with the number of processes of SLURM and Open MPI, which JAX connects by itself.
CLUSTERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    cluster: bool = False,
) -> None:
    """Join the processes of a run, before anything else uses JAX.

    `cluster` takes the other three from the environment of a TPU pod slice. Without any flag, srun
    and mpirun are recognised by their variables.
    """
    named = [value is not None for value in (coordinator, processes, process)]
    if any(named) and (not all(named) or cluster):
        raise UserError(
            "give --coordinator, --processes and --process together, or only --cluster."
        )
    counts_them = next((name for name in CLUSTERS if int(os.environ.get(name, "1")) > 1), "")
    if all(named):
        cause = f"--processes={processes}"
    elif counts_them:
        cause = f"{counts_them}={os.environ[counts_them]} (unset it to train only in this process)"
    elif cluster:
        cause = "--cluster"
    else:
        return
    print(f"connecting to the other processes of this run: {cause}.", file=sys.stderr, flush=True)

    def end_alone() -> None:
        late = f"not all processes of this run were started within {CONNECT_SECONDS:.0f} s"
        print(f"error: {late}: start as many as {cause} says.", file=sys.stderr, flush=True)
        os._exit(USER_ERROR)

    # JAX alone would wait in silence, then abort.
    patience = threading.Timer(CONNECT_SECONDS, end_alone)
    patience.start()
    try:
        # JAX takes the missing ones from the environment.
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=int(2 * CONNECT_SECONDS),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as reason:
        raise UserError(f"the processes of this run could not be connected: {reason}") from reason
    finally:
        patience.cancel()
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:  # a batch is split equally
        words = ", ".join(f"host {host} has {counts[host]}" for host in sorted(counts))
        raise UserError(
            f"the hosts have different numbers of devices ({words}): give each of them the same."
        )


def keep_compiled() -> None:
    """Enable JAX's persistent compilation cache, unless its folder is set already."""
    check_devices()
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / processor()))
        # Small programs too: startup compiles dozens of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def check_devices() -> None:
    """Raise UserError if JAX_PLATFORMS names a platform that JAX cannot use here."""
    named = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
    except Exception as reason:  # of several types
        if not named:
            raise
        why = f" ({short(reason)})" if str(reason) else ""
        raise UserError(
            f"JAX_PLATFORMS={named!r} cannot be used here{why}: unset it, or install JAX for it, "
            "`pip install 'jax[cuda13]'` for an NVIDIA GPU or `pip install 'jax[tpu]'` on a TPU VM."
        ) from None


def processor() -> str:
    """Return a name for this processor's instruction set, for which programs are compiled."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        kind = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


@functools.lru_cache(maxsize=KEPT_PROGRAMS)
def on_devices(
    function: Callable[..., PyTree],
    model: Hashable,
    in_axes: int | tuple[int | None, ...] = 0,
    devices: tuple[jax.Device, ...] | None = None,
) -> Callable[..., PyTree]:
    """Return function(model, …), compiled for the local devices or the given ones.

    The other arguments and the results have a leading device axis.
    """
    own = functools.partial(function, model)
    return jax.pmap(own, axis_name=AXIS, in_axes=in_axes, devices=devices)


def is_first() -> bool:
    """Return whether this is host 0, which writes files and prints."""
    return jax.process_index() == 0


def _sharding() -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))


def replicate(tree: PyTree) -> PyTree:
    """Return a copy of every array on each of this host's devices, with a leading device axis.

    The copies have the sharding of pmap's results, so that a program is compiled once for both.
    Replicated arrays are returned as they are.
    """
    own, devices = _sharding(), jax.local_device_count()

    def copy(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding == own:
            return x
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (devices, *x.shape)), own)

    return jax.tree.map(copy, tree)


def place(tree: PyTree) -> PyTree:
    """Start copying arrays with a leading device axis to this host's devices."""
    return jax.device_put(tree, _sharding())


def to_host(tree: PyTree) -> PyTree:
    """Copy one replica of every array to the host."""
    # Indexed by "...", a scalar stays an array, which every version of Orbax can save.
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data)[0, ...], tree)


def on_all_hosts(here: bool) -> bool:
    """Return whether `here` is true on every host.  All hosts must call this together."""
    return sum_over_hosts(int(here)) == jax.process_count()


def check_same(facts: Callable[[], Mapping[str, str]]) -> None:
    """Raise UserError, on all hosts, naming a fact that differs between a host and host 0.

    All hosts must call this together. `facts` is not called on a single host.
    """
    if jax.process_count() == 1:
        return
    own = facts()
    # Hosts of other versions may have other facts, so their names are compared first.
    for compared in ({"version of dpt-jax": "\n".join([__version__, *own])}, own):
        texts = (text.encode(errors="surrogateescape") for text in compared.values())
        digests = [np.frombuffer(hashlib.sha256(text).digest(), np.uint8) for text in texts]
        everywhere = multihost_utils.process_allgather(np.stack(digests))  # (hosts, facts, 32)
        different = np.argwhere((everywhere != everywhere[0]).any(axis=2))
        if len(different):
            host, number = different[0]
            raise UserError(
                f"host {host} has a different {[*compared][number]} than host 0: give all hosts "
                "the same command and the same files."
            )


def first_says(here: bool) -> bool:
    """Return host 0's value on all hosts.  All hosts must call this together."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(here)))


def sum_over_hosts(number: int) -> int:
    """Return the sum of every host's number.  All hosts must call this together."""
    return int(np.sum(multihost_utils.process_allgather(np.asarray(number))))


def overlapped(
    batches: Iterable[Batch], compute: Callable[[Batch], PyTree]
) -> Iterator[tuple[Batch, PyTree]]:
    """Yield batches with their results, computing one while the results of another are fetched.

    `compute` returns a tree of arrays (devices, b, …), which become host arrays (rows, …) without
    the padding.
    """

    def fetch(batch: Batch, x: jax.Array) -> np.ndarray:
        return np.asarray(x).reshape(-1, *x.shape[2:])[: len(batch["label"])]

    started = ((batch, compute(batch)) for batch in batches)
    # In pairs: the next batch is started before one is fetched.
    for (batch, results), _ in itertools.pairwise(itertools.chain(started, [({}, None)])):
        yield batch, jax.tree.map(functools.partial(fetch, batch), results)


def over_all_rows(
    batches: Iterable[Batch], compute: Callable[[Batch], PyTree], total: int
) -> tuple[PyTree, Batch]:
    """Apply `compute`, see `overlapped`, to the batches of all hosts; all hosts get all results.

    Args:
      batches: Those of this host h of n, which has rows h, h + n, h + 2n and so on. All hosts have
        equally many, and the last ones may be empty.
      total: Number of rows on all hosts.

    Returns:
      The results as host arrays (total, …); label, index and weight (total,) of the rows.
    """
    parts = [
        (results, {name: batch[name] for name in ("label", "index", "weight")})
        for batch, results in overlapped(batches, compute)
    ]
    most = -(-total // jax.process_count())  # rows of a host

    def gather(*own: np.ndarray) -> np.ndarray:
        rows = np.concatenate(own)
        rows = np.pad(rows, [(0, most - len(rows)), *[(0, 0)] * (rows.ndim - 1)])
        everywhere = multihost_utils.process_allgather(rows)  # (hosts, most, …)
        return np.swapaxes(everywhere, 0, 1).reshape(-1, *rows.shape[1:])[:total]

    results, known = jax.tree.map(gather, *parts)
    return results, known
