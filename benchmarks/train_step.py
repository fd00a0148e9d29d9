"""Times a step, and compares its rate with that of a matrix product on the same machine.

    python benchmarks/train_step.py [--clip=vit-b-32] [--classes=100] [--batch=32] [--method=dpt]
        [--dtype=float32] [--mode=train] [--devices=N] [--steps=5] [--microbatch=0]
        [--remat=matmuls] [--memory] [--gemm=4096]

Weights are random. `--clip=small` runs in seconds. Prints one JSON line:
    step_s             median of the steps; with --mode=eval, of a batch with known text features
    text_s             with --mode=eval: encoding the class texts, once for all batches
    compile_s          how much longer the first step takes than the others
    model_gflop        a step's matrix products, see dpt_jax/training/metrics.py
    gemm_gflops_per_s  rate of a large matrix product in the same process and dtype
    gemm_ratio         the step's rate divided by gemm_gflops_per_s
    peak_memory_gb     of the process
    device_peak_memory_gb  of an accelerator
    compiled_gb        with --memory: the compiler's account of the step's memory, where the
                       arguments are mostly CLIP's weights; with --steps=0 nothing is run
"""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from absl import app, flags, logging

from benchmarks.random_clip import published_settings, random_clip
from benchmarks.timing import FLAGS, define_flags, print_line
from dpt_jax import distributed
from dpt_jax.check.measure import Work, compiled, product_rate, random_batch, times, training
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.data.loader import Batch
from dpt_jax.data.records import Dataset, Files
from dpt_jax.evaluation.evaluate import classify, encode_classes, merged_and_encoded
from dpt_jax.training import setup
from dpt_jax.training.metrics import count_operations
from dpt_jax.training.saved import initial_prompts

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
    # --batch images, or a few more so that each device has the same number.
    part = jax.local_device_count() * max(FLAGS.microbatch, 1)
    each = -(-FLAGS.batch // part) * max(FLAGS.microbatch, 1)
    batch = random_batch(each, FLAGS.classes, experiment.model.clip_config.image_size)
    images = batch["label"].size
    if FLAGS.mode == "train":
        work = training(experiment, batch)
    else:
        work, encoding = evaluation(experiment, batch)
    needed = jax.local_device_count() * count_operations(work.program, *work.arguments) / 1e9
    device = jax.local_devices()[0]
    result: dict[str, Any] = {
        "batch": images,
        "mode": FLAGS.mode,
        "remat": experiment.model.remat,
        "microbatch": FLAGS.microbatch,
        "model_gflop": round(needed, 1),
        "device": f"{jax.local_device_count()} x {device.device_kind}",
    }
    if FLAGS.memory:
        seconds, sizes = compiled(work)
        result["compile_s"] = round(seconds, 2)
        result["compiled_gb"] = {name: round(size / GB, 4) for name, size in sizes.items()}
    if FLAGS.steps:
        first, median = times(work.run, FLAGS.steps)
        result["step_s"] = round(median, 4)
        result.setdefault("compile_s", round(first - median, 2))
        if FLAGS.mode == "eval":
            result["text_s"] = round(times(encoding.run, FLAGS.steps)[1], 4)
        rate = needed / median
        gemm_rate = product_rate(dtype, FLAGS.gemm, max(FLAGS.steps, 5)) / 1e9
        result["gflops_per_s"], result["gemm_gflops_per_s"] = round(rate, 1), round(gemm_rate, 1)
        result["gemm_ratio"] = round(rate / gemm_rate, 3)
    if stats := device.memory_stats():
        result["device_peak_memory_gb"] = round(stats["peak_bytes_in_use"] / GB, 2)
    print_line(result, jax=jax.__version__)


def evaluation(experiment: setup.Experiment, batch: Batch) -> tuple[Work, Work]:
    """Return the work of classifying a batch with known text features, and of encoding texts."""
    model, clip = experiment.model, experiment.pretrained.params
    prompts, texts = merged_and_encoded(experiment, initial_prompts(experiment))

    def work(program: Any, *arguments: Any) -> Work:
        return Work(lambda: jax.block_until_ready(program(*arguments)), program, arguments)

    classifying, encoding = (distributed.on_devices(x, model) for x in (classify, encode_classes))
    of_images = work(classifying, clip, prompts, texts, batch["image"])
    return of_images, work(encoding, clip, prompts, experiment.texts)


if __name__ == "__main__":
    app.run(main)
