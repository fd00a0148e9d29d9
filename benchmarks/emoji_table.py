"""Zero-shot, CoOp, VPT, VLP and DPT on the embedded emoji task: the table of the README.

    python benchmarks/emoji_table.py [--runs=runs/emoji_table] [--seeds=1,2,3] [--shots=1,2,4,8]

Runs that have their results.json are read, not repeated, so that the table can
be stopped and started again.
"""

import json
import pathlib
import sys

# Started as a script, whose import path begins in this folder and not at the root of the repository.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from absl import app, flags, logging

from configs import coop, dpt, vlp, vpt
from dpt_jax import experiment as experiments
from dpt_jax.evaluate import RESULTS_FILE, evaluate
from dpt_jax.train import train

METHODS = {"CoOp": coop, "VPT": vpt, "VLP": vlp, "DPT": dpt}
RUNS = flags.DEFINE_string("runs", "runs/emoji_table", "Where the runs are kept.")
SEEDS = flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds of sample, prompts and augmentation.")
SHOTS = flags.DEFINE_list("shots", ["1", "2", "4", "8"], "Images a class.")


def main(_: list[str]) -> None:
    """Runs what is missing and prints the table as Markdown."""
    logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that is not there
    results: dict[tuple[str, str], list[dict]] = {}
    pretrained = None
    for shots in SHOTS.value:
        for name, method in METHODS.items():
            for seed in SEEDS.value:
                workdir = pathlib.Path(RUNS.value) / name / f"{shots}shot" / f"seed{seed}"
                if not (workdir / RESULTS_FILE).exists():
                    config = method.get_config()
                    config.dataset.shots, config.seed = int(shots), int(seed)
                    experiment = experiments.prepare(config, pretrained)
                    pretrained = experiment.pretrained
                    evaluate(experiment, train(experiment, workdir), workdir)
                results.setdefault((name, shots), []).append(json.loads((workdir / RESULTS_FILE).read_text()))
    print("| method | " + " | ".join(f"{shots} shot{'s' if shots != '1' else ''}" for shots in SHOTS.value) + " |")
    print("| --- |" + " --- |" * len(SHOTS.value))
    zero_shot = next(iter(results.values()))[0]["zero_shot_accuracy"]
    print("| zero-shot |" + f" {100 * zero_shot:.1f} |" * len(SHOTS.value))
    for name in METHODS:
        cells = [100 * np.array([r["accuracy"] for r in results[name, shots]]) for shots in SHOTS.value]
        print(f"| {name} | " + " | ".join(f"{c.mean():.1f} ± {c.std():.1f}" for c in cells) + " |")


if __name__ == "__main__":
    app.run(main)
