"""Compiles the programs of main.py for TPU chips, on a machine that has none.

    pip install libtpu
    python benchmarks/compile_for_tpu.py --topology=v5e:2x2 --clip=vit-b-16 --classes=1000
        --batch=32 [--method=dpt] [--dtype=bfloat16] [--remat=matmuls] [--mode=train] [--hlo=FILE]

--batch is the number of images of a chip. Prints one JSON line:
    compile_s        of the TPU compiler; tracing is not counted
    fits             whether the program fits the chip's memory; if not, needs_gb is what it needs
    gb               of a chip's memory: arguments (mostly CLIP's weights), temporaries, together
    chip_gb          the memory that a chip has
    collectives      number and bytes of each kind, of a chip; null where jaxlib cannot read the
                     program of this libtpu, as 0.10.2 those of libtpu 0.0.52 for v5p and v6e
    model_gflop      what the mathematics of a step needs of a chip, see training/flops.py
    least_ms         two bounds on the time: `flops` is the operations at the chip's peak rate for
                     bfloat16; `memory` is arguments and results once, and temporaries twice, at
                     the rate of its memory
With --mode=eval these are of classifying a batch, as `dpt-jax predict` does it (the evaluation of
main.py runs its two halves); `texts` has those of encoding the class texts.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.chips import CHIPS, Chip, chip_of, least_ms
from dpt_jax.errors import UserError
from dpt_jax.methods import METHODS

# The compiler needs neither a TPU nor the services of a TPU VM, and JAX itself runs on the CPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
GB = 1e9
NUMBER_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
COLLECTIVE = re.compile(
    r"= (?P<shapes>.+?) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
OUT_OF_MEMORY = re.compile(r"Used ([0-9.]+)([MGT]) of")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse(arguments)
    try:
        chip = chip_of(options.topology)
        # Before JAX is imported, which reads them.
        os.environ.update(ENVIRONMENT)
        print(json.dumps(report(options, chip)))
    except UserError as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2) from None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default=CHIPS["v5e"].topology)
    parser.add_argument("--clip", choices=("vit-b-32", "vit-b-16", "vit-l-14"), default="vit-b-32")
    parser.add_argument("--classes", type=int, choices=range(1, 1001), default=100, metavar="N")
    parser.add_argument("--batch", type=int, default=32, metavar="IMAGES", help="of a chip")
    parser.add_argument("--method", choices=tuple(METHODS), default="dpt")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--remat", choices=("none", "matmuls", "blocks"), default="matmuls")
    parser.add_argument("--mode", choices=("train", "eval"), default="train")
    parser.add_argument("--hlo", help="a file to write the compiled program to")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        parser.error("--batch must be positive")
    return options


def tpu_devices(topology: str) -> list[Any]:
    """Return the devices to compile for.  Raise UserError where libtpu cannot give them."""
    from jax.experimental import topologies

    try:
        # Imported for the sentence alone: JAX finds it by itself.
        __import__("libtpu")
        with quiet():
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
        return list(found.devices)
    except ImportError as reason:
        raise UserError(
            "libtpu is not installed, and it holds the TPU compiler: pip install libtpu."
        ) from reason
    except Exception as reason:  # JAX passes on what libtpu raises, of any kind
        first = (str(reason).splitlines() or [""])[0]
        raise UserError(f"--topology={topology}: libtpu does not take it ({first}).") from reason


def report(options: argparse.Namespace, chip: Chip) -> dict[str, Any]:
    """Compile what the options name, and return the line."""
    on = tpu_devices(options.topology)
    import jax
    import jaxlib

    from benchmarks import flops
    from benchmarks.tpu_programs import make_case, programs

    case = make_case(options, chip, len(on))
    images = options.batch * len(on)
    if case.train:
        needed = flops.step(case.model, case.layout, images, case.step.guidance)
    else:
        needed = flops.evaluation(case.model, case.layout, images)
    operations = needed / len(on)
    line: dict[str, Any] = {
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
    }
    (name, lowered), *others = programs(case, on)
    line |= compile_one(lowered, chip, operations, options.hlo)
    for other, lowered in others:
        line[other] = compile_one(lowered, chip, 0.0)
    return line | {"program": name, "jax": jax.__version__, "jaxlib": jaxlib.__version__}


def compile_one(
    lowered: Any, chip: Chip, operations: float, hlo: str | None = None
) -> dict[str, Any]:
    """Compile a lowered program, and return what the compiler says of it."""
    began = time.perf_counter()
    try:
        with quiet():
            compiled = lowered.compile()
    except Exception as reason:
        needs = OUT_OF_MEMORY.search(str(reason))
        if not needs:
            raise
        unit = {"M": 2**20, "G": 2**30, "T": 2**40}[needs[2]]
        return {"fits": False, "needs_gb": round(float(needs[1]) * unit / GB, 1)}
    seconds = time.perf_counter() - began
    text = as_text(compiled)
    if hlo and text:
        pathlib.Path(hlo).write_text(text, encoding="utf-8")
    sizes = compiled.memory_analysis()
    arguments, results = sizes.argument_size_in_bytes, sizes.output_size_in_bytes
    temporaries = sizes.temp_size_in_bytes
    together = arguments + results - sizes.alias_size_in_bytes + temporaries
    memory = {"arguments": arguments, "temporaries": temporaries, "together": together}
    return {
        "compile_s": round(seconds, 1),
        "fits": True,
        "gb": {name: round(size / GB, 2) for name, size in memory.items()},
        "collectives": collectives(text) if text else None,
        "least_ms": least_ms(chip, operations, arguments + results + 2 * temporaries),
    }


def as_text(compiled: Any) -> str | None:
    """Return the compiled program, or None where jaxlib cannot read it."""
    from jax.errors import JaxRuntimeError

    try:
        return compiled.as_text()
    except JaxRuntimeError:
        return None


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Return {kind: {"count", "bytes"}} of a compiled program, bytes of the results of one chip."""
    found: dict[str, dict[str, int]] = {}
    for match in COLLECTIVE.finditer(text):
        kind = found.setdefault(match["kind"], {"count": 0, "bytes": 0})
        kind["count"] += 1
        kind["bytes"] += sum(
            NUMBER_BYTES.get(number, 4) * _product(sizes)
            for number, sizes in SHAPE.findall(match["shapes"])
        )
    return found


def _product(sizes: str) -> int:
    result = 1
    for size in filter(None, sizes.split(",")):
        result *= int(size)
    return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the compiler's notes off standard error."""
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
    main()
