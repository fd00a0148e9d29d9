"""Zero-shot, CoOp, VPT, VLP and DPT on the embedded emoji task: table and figure of the README.

    python benchmarks/emoji_table.py [--runs=runs/emoji_table] [--seeds=1,2,3] [--shots=1,2,4,8] [--figure=FILE]

Runs that have their results.json are read, not repeated, so that the table can
be stopped and started again.
"""

import json
import pathlib
import sys
from collections.abc import Mapping

# Started as a script, whose import path begins in this folder and not at the root of the repository.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

from configs import coop, dpt, vlp, vpt
from dpt_jax import experiment as experiments
from dpt_jax.data.dataset import load_dataset
from dpt_jax.evaluate import RESULTS_FILE, evaluate
from dpt_jax.train import train

METHODS = {"CoOp": coop, "VPT": vpt, "VLP": vlp, "DPT": dpt}
RUNS = flags.DEFINE_string("runs", "runs/emoji_table", "Where the runs are kept.")
SEEDS = flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds of sample, prompts and augmentation.")
SHOTS = flags.DEFINE_list("shots", ["1", "2", "4", "8"], "Images a class.")
FIGURE = flags.DEFINE_string("figure", "", "A PNG or SVG file to draw; needs matplotlib.")


def main(_: list[str]) -> None:
    """Runs what is missing, prints the table as Markdown and draws the figure."""
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
                    # Every compiled program keeps memory maps, of which Linux grants a process 65,530.
                    jax.clear_caches()
                results.setdefault((name, shots), []).append(json.loads((workdir / RESULTS_FILE).read_text()))
    zero_shot = 100 * next(iter(results.values()))[0]["zero_shot_accuracy"]
    accuracy = {key: 100 * np.array([r["accuracy"] for r in runs]) for key, runs in results.items()}
    print("| method | " + " | ".join(f"{shots} shot{'s' if shots != '1' else ''}" for shots in SHOTS.value) + " |")
    print("| --- |" + " --- |" * len(SHOTS.value))
    print("| zero-shot |" + f" {zero_shot:.1f} |" * len(SHOTS.value))
    for name in METHODS:
        cells = [accuracy[name, shots] for shots in SHOTS.value]
        print(f"| {name} | " + " | ".join(f"{c.mean():.1f} ± {c.std():.1f}" for c in cells) + " |")
    if FIGURE.value:
        draw(accuracy, zero_shot, pathlib.Path(FIGURE.value))


def draw(accuracy: Mapping[tuple[str, str], np.ndarray], zero_shot: float, file: pathlib.Path) -> None:
    """The drawings of the task, and accuracy in percent over shots."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(1.1, 1), layout="constrained")
    dataset = load_dataset(dpt.get_config().dataset, seed=1)
    columns, rows = 5, 9
    sheet = Image.new("RGB", (2 * (columns * 66 + 240), rows * 66), "white")
    for label, classname in enumerate(dataset.classnames[: 2 * rows]):
        x, y = label // rows * (columns * 66 + 240), label % rows * 66
        own = [example for example in dataset.train if example.label == label][:columns]
        for i, example in enumerate(own):
            sheet.paste(dataset.read(example.path), (x + 230 + i * 66, y))
        left.text(x + 220, y + 33, classname, ha="right", va="center", fontsize=8)
    left.imshow(sheet)
    left.set_axis_off()
    left.set_title("The task: 18 kinds of Twemoji, a few drawings of each", fontsize=10)

    shots = [int(s) for s in SHOTS.value]
    for i, name in enumerate(METHODS):
        cells = [accuracy[name, s] for s in SHOTS.value]
        # A small shift keeps the error bars of the methods apart.
        at = np.array(shots) * 2 ** (0.06 * (i - 1.5))
        means, deviations = [c.mean() for c in cells], [c.std() for c in cells]
        right.errorbar(at, means, deviations, label=name, marker="o", markersize=4, capsize=2)
    right.axhline(zero_shot, color="grey", linestyle="--", label="zero-shot")
    right.set_xscale("log", base=2)
    right.set_xticks(shots, [str(s) for s in shots])
    right.set_xlabel("shots (training images a class)")
    right.set_ylabel(f"test accuracy (%), mean ± s.d. of {len(SEEDS.value)} seeds")
    right.grid(alpha=0.3)
    right.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    app.run(main)
