"""Times a step, beside what its mathematics needs and what the machine can do.

    python benchmarks/train_step.py [--clip=vit-b-32] [--classes=100] [--batch=32] [--method=dpt]
        [--dtype=float32] [--mode=train] [--devices=N] [--steps=5] [--microbatch=0]
        [--remat=matmuls] [--memory] [--gemm=4096]

Takes random weights of a published size, or of a small one that is tried in seconds, and the
first --classes of ImageNet's class names.
Prints one JSON line:
    step_s             median of the steps; with --mode=eval, of a batch, text features given
    text_s             with --mode=eval: encoding the class texts, once for all batches
    compile_s          how much longer the first step takes than the others
    model_gflop        what a step's mathematics needs, see dpt_jax/training/flops.py
    gemm_gflops_per_s  rate of a large matrix product in the same process and dtype
    gemm_ratio         the step's rate divided by that
    peak_memory_gb     of the process
    device_peak_memory_gb  of an accelerator
    compiled_gb        with --memory: the compiler's account of the step's memory, where the
                       arguments are mostly CLIP's weights; with --steps=0 nothing is run
"""

import datetime
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags, logging

from dpt_jax.methods import TRAINED

CLIP = flags.DEFINE_enum(
    "clip", "vit-b-32", ["vit-b-32", "vit-b-16", "vit-l-14", "small"], "The size of the backbone."
)
CLASSES = flags.DEFINE_integer(
    "classes",
    100,
    "How many of ImageNet's class names, from the first on.",
    lower_bound=1,
    upper_bound=1000,
)
BATCH = flags.DEFINE_integer("batch", 32, "Images a step, on all devices together.", lower_bound=1)
METHOD = flags.DEFINE_enum("method", "dpt", TRAINED, "What is trained.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "A training step, or a batch of an evaluation."
)
DEVICES = flags.DEFINE_integer(
    "devices", None, "How many devices to simulate on a CPU; elsewhere all devices run."
)
STEPS = flags.DEFINE_integer("steps", 5, "How many steps are timed.", lower_bound=0)
MICROBATCH = flags.DEFINE_integer("microbatch", 0, "train.microbatch.", lower_bound=0)
REMAT = flags.DEFINE_enum("remat", "matmuls", ["none", "matmuls", "blocks"], "train.remat.")
MEMORY = flags.DEFINE_bool(
    "memory", False, "Compile once more for the compiler's account of the memory."
)
GEMM = flags.DEFINE_integer("gemm", 4096, "Rows of the matrices whose product is timed.")
GB = 1e9


def main(_: list[str]) -> None:
    """Time the step that the flags name and print the line."""
    logging.set_verbosity(logging.WARNING)
    if DEVICES.value:
        count = f"--xla_force_host_platform_device_count={DEVICES.value}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    # JAX reads the number of devices when it starts.
    import jax
    import numpy as np

    from benchmarks import flops
    from benchmarks.random_clip import published_settings, random_clip
    from dpt_jax import distributed
    from dpt_jax.data.catalogue import imagenet_classnames
    from dpt_jax.data.records import Dataset, Files
    from dpt_jax.training import setup as experiments

    config = published_settings(METHOD.value, CLIP.value)
    config.dtype, config.train.batch_size = DTYPE.value, BATCH.value
    config.train.microbatch, config.train.remat = MICROBATCH.value, REMAT.value
    dtype = experiments.compute_dtype(config)
    names = tuple(imagenet_classnames()[: CLASSES.value])
    dataset = Dataset(Files(pathlib.Path()), names, train=[], val=[], test=[])
    experiment = experiments.assemble(config, dataset, random_clip(CLIP.value, dtype))
    generator, local = np.random.default_rng(0), jax.local_device_count()
    part = local * max(MICROBATCH.value, 1)
    rows, size = -(-BATCH.value // part) * part // local, experiment.model.clip_config.image_size
    batch = {
        "image": generator.integers(0, 256, (local, rows, size, size, 3), np.uint8),
        "label": generator.integers(0, len(names), (local, rows), np.int32),
        "weight": np.ones((local, rows), np.float32),
    }
    layout = distributed.to_host(experiment.frozen.packed)
    train, guided = MODE.value == "train", config.loss.guidance_epochs > 0
    if train:
        needed = flops.step(experiment.model, layout, local * rows, guided) / 1e9
    else:
        needed = flops.evaluation(experiment.model, layout, local * rows) / 1e9
    result: dict[str, Any] = {
        "clip": CLIP.value,
        "classes": len(names),
        "batch": local * rows,
        "method": METHOD.value,
        "dtype": DTYPE.value,
        "mode": MODE.value,
        "remat": experiment.model.remat,
        "microbatch": MICROBATCH.value,
        "model_gflop": round(needed, 1),
    }
    result |= (training if train else evaluating)(experiment, batch)
    if STEPS.value:
        result["images_per_s"] = round(local * rows / result["step_s"], 2)
        result["gflops_per_s"] = round(needed / result["step_s"], 1)
        result["gemm_gflops_per_s"] = round(gemm(dtype), 1)
        result["gemm_ratio"] = round(result["gflops_per_s"] / result["gemm_gflops_per_s"], 3)
    result["peak_memory_gb"] = round(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB, 2
    )
    if stats := jax.local_devices()[0].memory_stats():
        result["device_peak_memory_gb"] = round(stats["peak_bytes_in_use"] / GB, 2)
    result |= {
        "device": f"{local} x {jax.local_devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(result))


def training(experiment: Any, batch: Any) -> dict[str, Any]:
    """Return step_s, compile_s and compiled_gb of the training step."""

    from dpt_jax import distributed
    from dpt_jax.training.initial_prompts import initial_prompts
    from dpt_jax.training.optimizer import make_optimizer
    from dpt_jax.training.schedule import Schedule
    from dpt_jax.training.step import StepConfig, make_step, new_state
    from dpt_jax.training.texts import consistency_target

    prompts, loss = initial_prompts(experiment), experiment.config.loss
    # What the losses hold to has the template's texts here, as the settings above say.
    frozen = experiment.frozen._replace(target=consistency_target(experiment))
    optimizer = make_optimizer()
    config = StepConfig(loss.alpha, MICROBATCH.value, guidance=loss.guidance_epochs > 0)
    step = make_step(experiment.model, optimizer, config)
    schedule = Schedule(0.01, 0.002, 1, 2, 1, loss.guidance_epochs).as_arrays()
    schedule = distributed.replicate(schedule)
    state = distributed.replicate(new_state(experiment.model, config, prompts, optimizer))
    compiled = account(step, state, frozen, batch, schedule) if MEMORY.value else {}

    def run() -> Any:
        nonlocal state
        state = step(state, frozen, batch, schedule)
        return state

    return timed(run) | compiled


def evaluating(experiment: Any, batch: Any) -> dict[str, Any]:
    """Return step_s, text_s, compile_s and compiled_gb of the evaluation."""
    from dpt_jax import distributed
    from dpt_jax.evaluation.evaluate import make_programs
    from dpt_jax.training.initial_prompts import initial_prompts

    classifier, frozen = make_programs(experiment.model), experiment.frozen
    prompts = distributed.replicate(initial_prompts(experiment))
    texts = classifier.encode_texts(frozen, prompts)
    arguments = frozen, prompts, texts, batch["image"]
    compiled = account(classifier.classify, *arguments) if MEMORY.value else {}
    encoding = timed(lambda: classifier.encode_texts(frozen, prompts))
    result = timed(lambda: classifier.classify(*arguments)) | compiled
    return result | {"text_s": encoding["step_s"]} if STEPS.value else result


def timed(run: Callable[[], Any]) -> dict[str, float]:
    """Return the median of STEPS calls, and how much longer the first took, since it compiles."""
    import jax

    if not STEPS.value:
        return {}

    def seconds() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - began

    first, *times = (seconds() for _ in range(STEPS.value + 1))
    step = statistics.median(times)
    return {"step_s": round(step, 4), "compile_s": round(first - step, 2)}


def account(function: Any, *arguments: Any) -> dict[str, Any]:
    """Return the compiler's account of the memory of one device."""
    began = time.perf_counter()
    analysis = function.lower(*arguments).compile().memory_analysis()
    seconds = time.perf_counter() - began
    sizes = {
        name: getattr(analysis, f"{name}_size_in_bytes")
        for name in ("argument", "output", "alias", "temp")
    }
    sizes["together"] = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    # The first step of this process then finds the program compiled.
    return {
        "compile_s": round(seconds, 2),
        "compiled_gb": {name: round(size / GB, 4) for name, size in sizes.items()},
    }


def gemm(dtype: Any) -> float:
    """Return Gflop/s of the product of two square matrices, on all devices at once."""
    import jax
    import jax.numpy as jnp

    local, size = jax.local_device_count(), GEMM.value
    product = jax.pmap(jnp.matmul)
    a = jax.pmap(lambda x: jnp.full((size, size), x, dtype))(jnp.full(local, 0.01))
    jax.block_until_ready(product(a, a))
    times = []
    for _ in range(max(STEPS.value, 5)):
        began = time.perf_counter()
        jax.block_until_ready(product(a, a))
        times.append(time.perf_counter() - began)
    return 2 * local * size**3 / statistics.median(times) / 1e9


if __name__ == "__main__":
    app.run(main)
