"""Flags, times and the result line that the benchmarks of a step share."""

import datetime
import json
import os
import platform
import resource
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags

from benchmarks.random_clip import SIZES
from dpt_jax.check.measure import times
from dpt_jax.methods import METHODS

FLAGS = flags.FLAGS
STEPPED = [name for name, method in METHODS.items() if method.in_towers]  # others train no tower
STEP_FLAGS = ("clip", "classes", "batch", "method", "dtype")


def define_flags(
    clip: str = "vit-b-32",
    batch: int = 32,
    steps: int = 5,
    methods: Iterable[str] = STEPPED,
    method: str | None = "dpt",
) -> None:
    """Define the flags that name a step, with these defaults."""
    flags.DEFINE_enum("clip", clip, list(SIZES), "Backbone size.")
    flags.DEFINE_integer(
        "classes", 100, "The first N ImageNet classes.", lower_bound=1, upper_bound=1000
    )
    flags.DEFINE_integer("batch", batch, "Images per step, on all devices.", lower_bound=1)
    flags.DEFINE_enum("method", method, list(methods), "Method to train.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the computation.")
    flags.DEFINE_integer("steps", steps, "Steps to time.", lower_bound=0)


def torch_times(step: Callable[[], object]) -> dict[str, Any]:
    """Return step_s and device of a PyTorch step; a GPU's memory too."""
    import torch

    def finished_step() -> None:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return torch_result(times(finished_step, FLAGS.steps)[1])


def torch_result(seconds: float) -> dict[str, Any]:
    """Return step_s and device of a PyTorch step that was timed; a GPU's memory too."""
    import torch

    result: dict[str, Any] = {"step_s": round(seconds, 4)}
    if not torch.cuda.is_available():
        return result | {"device": f"cpu, {torch.get_num_threads()} threads"}
    memory = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return result | {"device": torch.cuda.get_device_name(), "device_peak_memory_gb": memory}


def print_line(result: dict[str, Any], **versions: str) -> None:
    """Print a result as one JSON line: the step's flags first, the machine and versions last."""
    line = {name: FLAGS[name].value for name in STEP_FLAGS} | result
    if "step_s" in result:
        line["images_per_s"] = round(line["batch"] / result["step_s"], 2)
    line |= {
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(line))
