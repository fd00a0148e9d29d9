"""Times the step of each method here and as PyTorch code does it, one after the other.

    python benchmarks/beside_torch.py [--methods=ivlp,maple,promptsrc,kgcoop,cocoop]
        [--clip=vit-b-16] [--classes=100] [--batch=4] [--steps=2]

Runs torch_step.py and train_step.py in processes of their own, in float32, and prints a table of
what they say, a line a method as it comes. A step has --batch images, or the method's published
batch where that is smaller.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags

from benchmarks.random_clip import SIZES, published_settings
from dpt_jax.methods import METHODS

HERE = pathlib.Path(__file__).resolve().parent
METHODS_TIMED = flags.DEFINE_list(
    "methods", ["ivlp", "maple", "promptsrc", "kgcoop", "cocoop"], "Names in configs/."
)
CLIP = flags.DEFINE_enum("clip", "vit-b-16", list(SIZES), "The size of the backbone.")
CLASSES = flags.DEFINE_integer("classes", 100, "Class texts.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 4, "Images a step, at most.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "How many are timed of each.", lower_bound=1)


def main(_: list[str]) -> None:
    """Time the methods that the flags name and print the table."""
    print("| method | batch | PyTorch (s) | here (s) | ratio | gflop here | peak, both (GB) |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for method in METHODS_TIMED.value:
        batch = min(BATCH.value, published_settings(method, CLIP.value).train.batch_size)
        torch = result_of("torch_step.py", method, batch)
        here = result_of("train_step.py", method, batch, "--gemm=64")
        print(
            f"| {METHODS[method].label} | {batch} | {torch['step_s']:.3g} | {here['step_s']:.3g}"
            f" | {here['step_s'] / torch['step_s']:.2f} | {here['model_gflop']:.0f}"
            f" | {torch['peak_memory_gb']}, {here['peak_memory_gb']} |",
            flush=True,
        )
    print(
        f"\n{CLIP.value}, {CLASSES.value} classes, float32, {here['device']} and {torch['device']},"
        f" {here['cores']} cores, Python {here['python']}, jax {here['jax']},"
        f" torch {torch['torch']}, {here['date']}"
    )


def result_of(script: str, method: str, batch: int, *others: str) -> dict[str, Any]:
    """Return what a program of this folder says of a method's step."""
    options = [f"--method={method}", f"--batch={batch}", f"--clip={CLIP.value}", *others]
    options += [f"--classes={CLASSES.value}", f"--steps={STEPS.value}", "--dtype=float32"]
    done = subprocess.run(
        [sys.executable, str(HERE / script), *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    app.run(main)
