"""Times a step, and compares its rate with that of a matrix product on the same machine.

    python benchmarks/train_step.py [--clip=vit-b-32] [--classes=100] [--batch=32] [--method=dpt]
        [--dtype=float32] [--mode=train] [--devices=N] [--steps=5] [--microbatch=0]
        [--remat=matmuls] [--memory] [--gemm=4096]

Weights are random. `--clip=small` runs in seconds. Prints one JSON line:
    step_s             median of the steps; with --mode=eval, of a batch, text features given
    text_s             with --mode=eval: encoding the class texts, once for all batches
    compile_s          how much longer the first step takes than the others
    model_gflop        a step's matrix products, see dpt_jax/training/flops.py
    gemm_gflops_per_s  rate of a large matrix product in the same process and dtype
    gemm_ratio         the step's rate divided by that
    peak_memory_gb     of the process
    device_peak_memory_gb  of an accelerator
    compiled_gb        with --memory: the compiler's account of the step's memory, where the
                       arguments are mostly CLIP's weights; with --steps=0 nothing is run
"""

import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks.random_clip import published_settings, random_clip
from benchmarks.timing import FLAGS, define_flags, print_line
from dpt_jax import distributed
from dpt_jax.check.programs import Work, times, training
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.data.loader import Batch
from dpt_jax.data.records import Dataset, Files
from dpt_jax.evaluation.evaluate import make_programs
from dpt_jax.training import flops, setup
from dpt_jax.training.initial_prompts import initial_prompts

define_flags()
flags.DEFINE_enum("mode", "train", ["train", "eval"], "A training step, or an evaluation batch.")
flags.DEFINE_integer("devices", None, "CPU devices to simulate.")
flags.DEFINE_integer("microbatch", 0, "train.microbatch.", lower_bound=0)
flags.DEFINE_enum("remat", "matmuls", ["none", "matmuls", "blocks"], "train.remat.")
flags.DEFINE_bool("memory", False, "Print the compiler's account of the memory.")
flags.DEFINE_integer("gemm", 4096, "Rows of the matrices whose product is timed.")
GB = 1e9


def main(_: list[str]) -> None:
    """Time the step that the flags name and print the line."""
    logging.set_verbosity(logging.WARNING)
    if FLAGS.devices:
        jax.config.update("jax_num_cpu_devices", FLAGS.devices)
    config = published_settings(FLAGS.method, FLAGS.clip)
    config.dtype, config.train.batch_size = FLAGS.dtype, FLAGS.batch
    config.train.microbatch, config.train.remat = FLAGS.microbatch, FLAGS.remat
    dtype = setup.compute_dtype(config)
    names = tuple(imagenet_classnames()[: FLAGS.classes])
    dataset = Dataset(Files(pathlib.Path()), names, train=[], val=[], test=[])
    experiment = setup.assemble(config, dataset, random_clip(FLAGS.clip, dtype))
    batch = random_batch(experiment.model.clip_config.image_size)
    images = batch["label"].size
    if FLAGS.mode == "train":
        work = training(experiment, batch)
    else:
        work, encoding = evaluation(experiment, batch)
    needed = jax.local_device_count() * flops.of(work.program, *work.arguments) / 1e9
    device = jax.local_devices()[0]
    result: dict[str, Any] = {
        "batch": images,
        "mode": FLAGS.mode,
        "remat": experiment.model.remat,
        "microbatch": FLAGS.microbatch,
        "model_gflop": round(needed, 1),
        "device": f"{jax.local_device_count()} x {device.device_kind}",
    }
    compiled = memory(work) if FLAGS.memory else {}
    if FLAGS.steps:
        first, median = times(work.run, FLAGS.steps)
        result |= {"step_s": round(median, 4), "compile_s": round(first - median, 2)}
        if FLAGS.mode == "eval":
            result["text_s"] = round(times(encoding.run, FLAGS.steps)[1], 4)
        rate, gemm_rate = needed / median, gemm(dtype)
        result["gflops_per_s"], result["gemm_gflops_per_s"] = round(rate, 1), round(gemm_rate, 1)
        result["gemm_ratio"] = round(rate / gemm_rate, 3)
    if stats := device.memory_stats():
        result["device_peak_memory_gb"] = round(stats["peak_bytes_in_use"] / GB, 2)
    print_line(result | compiled, jax=jax.__version__)


def evaluation(experiment: setup.Experiment, batch: Batch) -> tuple[Work, Work]:
    """Return the work of classifying a batch with known text features, and of encoding texts."""
    programs, clip = make_programs(experiment.model), experiment.pretrained.params
    prompts = programs.merge(clip, distributed.replicate(initial_prompts(experiment)))
    texts = programs.encode_texts(clip, prompts, experiment.texts)

    def work(program: Any, *arguments: Any) -> Work:
        return Work(lambda: jax.block_until_ready(program(*arguments)), program, arguments)

    classify = work(programs.classify, clip, prompts, texts, batch["image"])
    return classify, work(programs.encode_texts, clip, prompts, experiment.texts)


def random_batch(size: int) -> dict[str, np.ndarray]:
    """Return a batch of --batch images or a few more, as many on each device."""
    generator, devices = np.random.default_rng(0), jax.local_device_count()
    part = devices * max(FLAGS.microbatch, 1)
    rows = -(-FLAGS.batch // part) * part // devices
    return {
        "image": generator.integers(0, 256, (devices, rows, size, size, 3), np.uint8),
        "label": generator.integers(0, FLAGS.classes, (devices, rows), np.int32),
        "index": np.zeros((devices, rows), np.int32),
        "weight": np.ones((devices, rows), np.float32),
    }


def memory(work: Work) -> dict[str, Any]:
    """Compile a program; return the seconds and the compiler's account of a device's memory."""
    began = time.perf_counter()
    analysis = work.program.lower(*work.arguments).compile().memory_analysis()
    seconds = time.perf_counter() - began  # the first step then finds the program compiled
    parts = ("argument", "output", "alias", "temp")
    sizes = {name: getattr(analysis, f"{name}_size_in_bytes") for name in parts}
    sizes["together"] = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    return {
        "compile_s": round(seconds, 2),
        "compiled_gb": {name: round(size / GB, 4) for name, size in sizes.items()},
    }


def gemm(dtype: Any) -> float:
    """Return Gflop/s of the product of two square matrices, on all devices at once."""
    devices, size = jax.local_device_count(), FLAGS.gemm
    product = jax.pmap(jnp.matmul)
    a = jax.pmap(lambda x: jnp.full((size, size), x, dtype))(jnp.full(devices, 0.01))
    _, median = times(lambda: jax.block_until_ready(product(a, a)), max(FLAGS.steps, 5))
    return 2 * devices * size**3 / median / 1e9


if __name__ == "__main__":
    app.run(main)
