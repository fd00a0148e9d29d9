"""What the programs that time PyTorch say of a step."""

import datetime
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def timed(
    step: Callable[[], object], steps: int, batch: int, device: torch.device
) -> dict[str, Any]:
    """Return the keys that are measured: the median of so many steps, after a first one.

    batch: images of a step.
    """

    def seconds() -> float:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds()
    median = statistics.median(seconds() for _ in range(steps))
    result: dict[str, Any] = {
        "step_s": round(median, 4),
        "images_per_s": round(batch / median, 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    if device.type == "cuda":
        result["device_peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return result
