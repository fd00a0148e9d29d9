"""Times the step of each method here and as PyTorch code does it, one after the other.

    python benchmarks/beside_torch.py [--methods=ivlp,maple,promptsrc,kgcoop,cocoop]
        [--clip=vit-b-16] [--classes=100] [--batch=4] [--steps=2] [--published=DIR]

Runs torch_step.py and train_step.py in processes of their own, in float32, and prints a table of
what they say, a line a method as it comes. A step has --batch images, or the method's published
batch where that is smaller. With --published it runs published_step.py too, where DIR holds clones
of the published codes under their own names (README.md beside this file has the commands).
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags

from benchmarks.published_code import PUBLISHED, find
from benchmarks.random_clip import SIZES, published_settings
from dpt_jax.errors import UserError
from dpt_jax.methods import METHODS, TRAINED

HERE = pathlib.Path(__file__).resolve().parent
METHODS_TIMED = flags.DEFINE_list(
    "methods", ["ivlp", "maple", "promptsrc", "kgcoop", "cocoop"], "Names in configs/."
)
CLIP = flags.DEFINE_enum("clip", "vit-b-16", list(SIZES), "The size of the backbone.")
CLASSES = flags.DEFINE_integer("classes", 100, "Class texts.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 4, "Images a step, at most.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "How many are timed of each.", lower_bound=1)
CLONES = flags.DEFINE_string("published", None, "The folder of the published codes' clones.")


def main(_: list[str]) -> None:
    """Time the methods that the flags name and print the table."""
    try:
        for method in METHODS_TIMED.value:
            if method not in TRAINED:
                raise UserError(f"--methods: no step of {method!r}; give {', '.join(TRAINED)}.")
        batches = {
            method: min(BATCH.value, published_settings(method, CLIP.value).train.batch_size)
            for method in METHODS_TIMED.value
        }
        clones = {method: clone_of(method, batch) for method, batch in batches.items()}
    except UserError as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2) from None
    beside = ["published (s)", "PyTorch (s)"] if CLONES.value else ["PyTorch (s)"]
    ratios = ["here / published", "here / PyTorch"] if CLONES.value else ["ratio"]
    heads = ["method", "batch", *beside, "here (s)", *ratios, "gflop here"]
    row(*heads, "peak, all (GB)" if CLONES.value else "peak, both (GB)")
    row(*["---"] * (len(heads) + 1))
    for method, batch in batches.items():
        others = [result_of("torch_step.py", method, batch)]
        if clone := clones[method]:
            others.insert(0, result_of("published_step.py", method, batch, f"--code={clone}"))
        here = result_of("train_step.py", method, batch, "--gemm=64")
        times = [f"{one['step_s']:.3g}" for one in (*others, here)]
        slower = [f"{here['step_s'] / other['step_s']:.2f}" for other in others]
        peaks = ", ".join(str(one["peak_memory_gb"]) for one in (*others, here))
        gflop = f"{here['model_gflop']:.0f}"
        row(METHODS[method].label, str(batch), *times, *slower, gflop, peaks)
    print(
        f"\n{CLIP.value}, {CLASSES.value} classes, float32, {here['device']} and "
        f"{others[0]['device']}, {here['cores']} cores, Python {here['python']}, jax {here['jax']},"
        f" torch {others[0]['torch']}, {here['date']}"
    )


def clone_of(method: str, batch: int) -> pathlib.Path | None:
    """Return the clone with a method's code, None without --published.

    Raise UserError where there is none, or where its code cannot take the step.
    """
    if CLONES.value is None:
        return None
    if method not in PUBLISHED:
        raise UserError(
            f"--methods: {method} has no published code; with --published it can be "
            f"{', '.join(PUBLISHED)}."
        )
    clone = pathlib.Path(CLONES.value) / PUBLISHED[method].clone
    find(clone, method, CLIP.value, batch)
    return clone


def row(*cells: str) -> None:
    """Print a row of the table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def result_of(script: str, method: str, batch: int, *others: str) -> dict[str, Any]:
    """Return what a program of this folder says of a method's step, or end as it ended."""
    options = [f"--method={method}", f"--batch={batch}", f"--clip={CLIP.value}", *others]
    options += [f"--classes={CLASSES.value}", f"--steps={STEPS.value}", "--dtype=float32"]
    done = subprocess.run(
        [sys.executable, str(HERE / script), *options],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:  # it has said why
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


if __name__ == "__main__":
    app.run(main)
