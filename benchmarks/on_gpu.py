"""Measures results and speed on a GPU, cheapest first, and writes each result at once.

    python benchmarks/on_gpu.py --out=DIR --minutes=10 [--small]

Check, parity, steps of three backbones in two types beside PyTorch's (bfloat16, eager and by
torch.compile), attention by cuDNN and by XLA. `dpt-jax check` has the loader, and a run that is
stopped and resumed bit for bit. DIR gets NAME.txt of each command and results.jsonl with its exit
code and seconds. --small is for a CPU. Exit code 1 if one failed or ran out of time.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

IMAGE_TOKENS, PROMPT_TOKENS, HEADS, WIDTH = 197, 10, 12, 64  # of ViT-B/16's image tower


def commands(small: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield a name and the arguments of Python, the most expensive last."""
    clips = ("small",) if small else ("vit-b-32", "vit-b-16", "vit-l-14")
    batches, classes = ((2,), 5) if small else ((32, 256), 100)
    check = ["--quick", "--clip=small"] if small else []
    yield "attention", ["benchmarks/on_gpu.py", "--attention", *(["--small"] if small else [])]
    yield "check", ["-m", "dpt_jax", "check", "--json", *check]
    if not small:
        tests = ("tests/test_parity.py", "tests/test_family_parity.py", "tests/test_precision.py")
        yield "parity", ["-m", "pytest", "-q", "-x", *tests]
    for batch, clip, dtype in itertools.product(batches, clips, ("bfloat16", "float32")):
        flags = [f"--clip={clip}", f"--classes={classes}", f"--batch={batch}", f"--dtype={dtype}"]
        flags += ["--steps=1"] if small else []
        gemm = ["--gemm=256"] if small else []
        yield f"step-{clip}-{batch}-{dtype}", ["benchmarks/train_step.py", *flags, *gemm]
        if dtype == "bfloat16":
            yield f"torch-{clip}-{batch}", ["benchmarks/torch_step.py", *flags]
            backend = "aot_eager" if small else "inductor"  # which compiles for minutes on a CPU
            compiled = ["benchmarks/torch_step.py", f"--compile={backend}", *flags]
            yield f"torch-compiled-{clip}-{batch}", compiled


def measure(out: pathlib.Path, minutes: float, small: bool) -> bool:
    """Run the commands while there is time; return whether all succeeded."""
    out.mkdir(parents=True, exist_ok=True)
    deadline, well = time.monotonic() + 60 * minutes, True
    for name, arguments in commands(small):
        began = time.monotonic()
        code: int | str = "no time left"
        late = contextlib.suppress(subprocess.TimeoutExpired)
        with (out / f"{name}.txt").open("w") as file, late:
            code = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(deadline - began, 0.01),
                check=False,
            ).returncode
        well &= code == 0
        line = {"name": name, "code": code, "seconds": round(time.monotonic() - began, 1)}
        with (out / "results.jsonl").open("a") as results:
            results.write(json.dumps(line) + "\n")
        print(line, flush=True)
    return well


def attention(small: bool) -> None:
    """Print the seconds of the image tower's attention, forward and backward, by each kernel."""
    import jax
    import jax.numpy as jnp

    batch = 2 if small else 256
    keys = IMAGE_TOKENS + PROMPT_TOKENS
    query, key, value = (
        jax.random.normal(jax.random.key(i), (batch, tokens, HEADS, WIDTH), jnp.bfloat16)
        for i, tokens in enumerate((IMAGE_TOKENS, keys, keys))
    )
    for kernel in ("xla", "cudnn"):
        if kernel == "cudnn" and jax.default_backend() != "gpu":
            continue

        def loss(query: jax.Array, key: jax.Array, value: jax.Array, by: Any = kernel) -> jax.Array:
            found = jax.nn.dot_product_attention(query, key, value, implementation=by)
            return found.astype(jnp.float32).sum()

        result: dict[str, object] = {"attention": kernel, "batch": batch, "keys": keys}
        try:
            step = jax.jit(jax.grad(loss, (0, 1, 2)))
            jax.block_until_ready(step(query, key, value))
            times = []
            for _ in range(10):
                began = time.perf_counter()
                jax.block_until_ready(step(query, key, value))
                times.append(time.perf_counter() - began)
            result["seconds"] = statistics.median(times)
        except Exception as reason:  # not every version of cuDNN takes an odd length
            result["error"] = str(reason)[:200]
        print(json.dumps(result), flush=True)


def main() -> None:
    """Read the flags, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("on_gpu"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--attention", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.attention:
        attention(flags.small)
    elif not measure(flags.out, flags.minutes, flags.small):
        sys.exit(1)


if __name__ == "__main__":
    main()
