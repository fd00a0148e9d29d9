"""Compiles the programs of main.py for TPU chips, on a machine without one.

    pip install libtpu
    python benchmarks/compile_for_tpu.py --topology=v5e:2x2 --clip=vit-b-16 --classes=1000
        --batch=32 [--method=dpt] [--dtype=bfloat16] [--remat=matmuls] [--mode=train]
        [--vmem-mib=N] [--hlo=FILE]

--batch is the number of images of a chip. Prints one JSON line:
    compile_s        of the TPU compiler, without tracing
    fits             whether the program fits the chip's memory; if not, needs_gb is what it needs
    gb               of a chip's memory: arguments (mostly CLIP's weights), temporaries, together
    chip_gb          the memory that a chip has
    model_gflop      the matrix products of a step on one chip, see dpt_jax/training/metrics.py
    least_ms         two bounds on the time: `flops` is the operations at the chip's peak rate for
                     bfloat16; `memory` is arguments and results once, and temporaries twice, at
                     the rate of its memory
With --mode=eval these are of the classification of a batch, as in `dpt-jax predict` (main.py's
evaluation runs its two halves); `texts` has the same for encoding the class texts.
"""

import os

if __name__ == "__main__":
    # Read when JAX and libtpu are imported: the compiler needs neither a TPU nor a TPU VM's
    # services, and JAX itself runs on the CPU.
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }

import argparse
import contextlib
import functools
import importlib.util
import json
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from benchmarks.random_clip import SIZES, clip_shapes, openai_tokenizer
from dpt_jax.cli import guard
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.packing import pack
from dpt_jax.config import method_config, prompt_config, templates
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.distributed import on_devices
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import classify, encode_classes
from dpt_jax.methods import METHODS
from dpt_jax.model import PromptedCLIP, Texts, init_prompts
from dpt_jax.prompts.text import context_tokens, plain_layout, prompted_texts
from dpt_jax.training.metrics import count_operations
from dpt_jax.training.state import make_plan, new_state
from dpt_jax.training.step import make_step

GB = 1e9
OUT_OF_MEMORY = re.compile(r"Used ([0-9.]+)([MGT]) of")


class Chip(NamedTuple):
    """One kind of chip.  Rates are per second; `flops` is the peak in bfloat16."""

    topology: str  # the smallest one that libtpu compiles for
    flops: float
    memory_bytes: float
    memory_bandwidth: float


# Google's figures per chip, from https://cloud.google.com/tpu/docs/v5e, …/v5p and …/v6e.
CHIPS = {
    "v5e": Chip("v5e:2x2", 197e12, 16e9, 819e9),
    "v5p": Chip("v5p:2x2x1", 459e12, 95e9, 2765e9),
    "v6e": Chip("v6e:2x2", 918e12, 32e9, 1638e9),
}


class Program(NamedTuple):
    """A function for the devices, and the shapes of its arguments."""

    name: str
    function: Any
    arguments: tuple[Any, ...]


class Case(NamedTuple):
    """What is compiled.  Arrays are shapes with a leading axis of `chips`."""

    config: ConfigDict
    model: PromptedCLIP
    clip: Params
    texts: Texts
    images: int  # of a chip
    chips: int
    train: bool


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default=CHIPS["v5e"].topology)
    parser.add_argument("--clip", choices=("vit-b-32", "vit-b-16", "vit-l-14"), default="vit-b-32")
    parser.add_argument("--classes", type=int, choices=range(1, 1001), default=100, metavar="N")
    parser.add_argument("--batch", type=int, default=32, metavar="IMAGES", help="per chip")
    parser.add_argument("--method", choices=tuple(METHODS), default="dpt")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--remat", choices=("none", "matmuls", "blocks"), default="matmuls")
    parser.add_argument("--mode", choices=("train", "eval"), default="train")
    parser.add_argument(
        "--vmem-mib", type=int, help="limit of the VMEM of one operation; default libtpu's"
    )
    parser.add_argument("--hlo", help="a file to write the compiled program to")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        parser.error("--batch must be positive")
    return options


def report(options: argparse.Namespace) -> None:
    """Compile what the flags name, and print the line."""
    chip = chip_of(options.topology)
    on = tpu_devices(options.topology)
    case = make_case(options, len(on))
    first, *others = programs(case, on)
    operations = count_operations(first.function, *first.arguments)
    line = {
        "topology": options.topology,
        "device": f"{len(on)} x {on[0].device_kind}",
        "clip": options.clip,
        "classes": options.classes,
        "batch": options.batch,
        "method": options.method,
        "dtype": options.dtype,
        "mode": options.mode,
        "remat": case.model.remat,
        "chip_gb": round(chip.memory_bytes / GB, 1),
        "model_gflop": round(operations / GB, 1),
        **compile_one(first, chip, operations, options),
        **{other.name: compile_one(other, chip, 0.0, options) for other in others},
        "program": first.name,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }
    print(json.dumps(line))


def chip_of(topology: str) -> Chip:
    """Return the chip of a topology such as "v5e:2x2".  Raises UserError for an unknown one."""
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not shape:
        examples = ", ".join(chip.topology for chip in CHIPS.values())
        raise UserError(f"--topology={topology}: give one such as {examples}.")
    return CHIPS[kind]


def tpu_devices(topology: str) -> list[Any]:
    """Return the devices to compile for.  Raises UserError if libtpu does not know them."""
    if not importlib.util.find_spec("libtpu"):
        raise UserError("libtpu, which has the TPU compiler, is missing: pip install libtpu.")
    try:
        with quiet():
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
        return list(found.devices)
    except Exception as reason:  # libtpu raises several types
        first = (str(reason).splitlines() or [""])[0]
        raise UserError(f"--topology={topology}: libtpu does not support it ({first}).") from reason


def make_case(options: argparse.Namespace, chips: int) -> Case:
    """Return the case that the flags name."""
    config = method_config(options.method, "imagenet")
    sizes, tokenizer = SIZES[options.clip], openai_tokenizer()
    names = imagenet_classnames()[: options.classes]
    prompts = prompt_config(config, len(names), sizes.vision.layers)
    if not config.text_prompt.fixed_words:
        config.text_prompt.init = ""
    if prompts.text_length:
        words = context_tokens(config.text_prompt.init, tokenizer)
        fixed = words[prompts.text_length :]
        layout = pack(prompted_texts(names, tokenizer, prompts.text_length, fixed=fixed))
    else:
        template = templates(config)[0]
        layout = plain_layout([template.format(name) for name in names], tokenizer)
    dtype, train = jnp.dtype(options.dtype), options.mode == "train"
    model = PromptedCLIP(sizes, prompts, dtype, options.remat)
    features: Any = jax.ShapeDtypeStruct((len(names), sizes.embed_dim), jnp.float32)
    target = features if prompts.has_consistency and train else None
    clip, texts = stacked(
        (clip_shapes(options.clip, dtype), Texts(layout, features, target)), chips
    )
    return Case(config, model, clip, texts, options.batch, chips, train)


def programs(case: Case, on: Sequence[jax.Device]) -> list[Program]:
    """Return the training step, or the two programs of an evaluation."""
    prompts = jax.eval_shape(functools.partial(init_prompts, case.model), jax.random.key(0))
    side = case.model.clip_config.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((case.images, side, side, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((case.images,), np.int32),
        "index": jax.ShapeDtypeStruct((case.images,), np.int32),
        "weight": jax.ShapeDtypeStruct((case.images,), np.float32),
    }
    batch = stacked(batch, case.chips)
    if not case.train:
        given = (case.clip, stacked(prompts, case.chips))
        encode = on_devices(encode_classes, case.model, devices=tuple(on))
        texts = jax.eval_shape(encode, *given, case.texts)
        program = on_devices(classify, case.model, devices=tuple(on))
        return [
            Program("classify", program, (*given, texts, batch["image"])),
            Program("texts", encode, (*given, case.texts)),
        ]
    plan = make_plan(case.config, case.images)
    state = jax.eval_shape(lambda p: new_state(case.model, plan, p), prompts)
    step: Any = make_step(case.model, plan.step, tuple(on))
    schedule = stacked(plan.schedule.as_arrays(), case.chips)
    state = stacked(state, case.chips)
    return [Program("step", step, (state, case.clip, case.texts, batch, schedule))]


def stacked(tree: Any, chips: int) -> Any:
    """Return the shapes of a tree with a leading axis of chips."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((chips, *x.shape), x.dtype), tree)


def compile_one(
    program: Program, chip: Chip, operations: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Compile a program, and return the compiler's account of it."""
    lowered = program.function.lower(*program.arguments)
    began, limit = time.perf_counter(), options.vmem_mib
    flags = {"xla_tpu_scoped_vmem_limit_kib": str(1024 * limit)} if limit else None
    try:
        with quiet():
            compiled = lowered.compile(compiler_options=flags)
    except Exception as reason:
        needs = OUT_OF_MEMORY.search(str(reason))
        if not needs:
            raise
        unit = {"M": 2**20, "G": 2**30, "T": 2**40}[needs[2]]
        return {"fits": False, "needs_gb": round(float(needs[1]) * unit / GB, 1)}
    seconds = time.perf_counter() - began
    if options.hlo:
        pathlib.Path(options.hlo).write_text(compiled.as_text(), encoding="utf-8")
    sizes = compiled.memory_analysis()
    arguments, results = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    temporaries = sizes.temp_size_in_bytes
    together = arguments + results - sizes.alias_size_in_bytes + temporaries
    memory = {"arguments": arguments, "temporaries": temporaries, "together": together}
    moved = arguments + results + 2 * temporaries
    return {
        "compile_s": round(seconds, 1),
        "fits": True,
        "gb": {name: round(size / GB, 2) for name, size in memory.items()},
        "least_ms": {
            "flops": round(1e3 * operations / chip.flops, 3),
            "memory": round(1e3 * moved / chip.memory_bandwidth, 3),
        },
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard the compiler's notes on standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


if __name__ == "__main__":
    guard(lambda arguments: report(parse(arguments)), sys.argv[1:])
