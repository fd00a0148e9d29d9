"""Where the time of a sweep goes, and how long the paper's whole table takes.

    python benchmarks/sweep.py [--data=digits,jpeg] [--methods=zeroshot,coop,vpt,vlp,dpt]
        [--shots=1] [--seeds=1,2] [--epochs=0] [--images=1000] [--pixels=500] [--classes=10]
        [--clip=vit-b-32] [--efficiency=0.4]

Runs a sweep in this process and prints, as Markdown, the seconds and the share of each stage, what
each run took, and how many programs were compiled. digits is the embedded default. jpeg is a CLIP
of random weights on JPEG files of random content, which are made on the spot: as many test images
as --images says. --epochs=0 leaves the published ones. Nothing that was compiled before is used.

Then the hours of DPT's whole table on this and other machines, from what the last sweep measured:
whole_table.py has the model. --efficiency is the share of their peak that other machines reach,
which nobody has measured: 0.4 is an assumption.
"""

import argparse
import os
import pathlib
import platform
import resource
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

BEGAN = time.perf_counter()
# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from benchmarks.stages import Clock
    from benchmarks.whole_table import Measured
    from dpt_jax.training.grid import Run

TERA = 1e12


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits,jpeg")
    parser.add_argument("--methods", default="zeroshot,coop,vpt,vlp,dpt")
    parser.add_argument("--shots", type=whole_numbers, default="1")
    parser.add_argument("--seeds", type=whole_numbers, default="1,2")
    for flag, default in {"epochs": 0, "images": 1000, "pixels": 500, "classes": 10}.items():
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--clip", default="vit-b-32", help="of benchmarks/random_clip.py")
    parser.add_argument("--efficiency", type=float, default=0.4)
    found = parser.parse_args(arguments)
    if wrong := {*found.data.split(",")} - {"digits", "jpeg"}:
        parser.error(f"--data: {wrong.pop()!r} is neither digits nor jpeg")
    if not 0 < found.classes <= min(found.images, 1000) or found.pixels < 16:
        parser.error("give --classes from 1 to 1000, an image for each, and --pixels from 16")
    if not 0 < found.efficiency <= 1:
        parser.error("give an --efficiency above 0 and up to 1")
    return found


def whole_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    """Run what the flags ask for, and print the tables."""
    flags = options()
    import dpt_jax.training.sweep  # noqa: F401  what every sweep imports

    imported = time.perf_counter() - BEGAN
    from absl import logging
    from absl.flags import FLAGS

    from benchmarks.stages import Clock, watch

    FLAGS.mark_as_parsed()  # Grain reads its own
    logging.set_verbosity(logging.WARNING)
    clock = Clock()
    watch(clock)
    import jax

    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}, "
        f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}.\n"
    )
    for data in flags.data.split(","):
        with tempfile.TemporaryDirectory() as folder:
            measured = sweep_on(data, flags, clock, imported, pathlib.Path(folder))
    predict(measured, flags.efficiency)


def sweep_on(
    data: str, flags: argparse.Namespace, clock: "Clock", imported: float, folder: pathlib.Path
) -> "Measured":
    """Run a sweep on one kind of data, print its tables, and return what was measured."""
    from dpt_jax.io import as_path
    from dpt_jax.methods import ROWS
    from dpt_jax.training.cost import Costs, Seen
    from dpt_jax.training.grid import plan
    from dpt_jax.training.sweep import Runner, sweep

    overrides = {"train.epochs": flags.epochs} if flags.epochs else {}
    overrides |= make_jpegs(flags, folder) if data == "jpeg" else {}
    name, methods = "folder" if data == "jpeg" else data, flags.methods.split(",")
    if wrong := {*methods} - {*ROWS}:
        sys.exit(f"--methods: {wrong.pop()!r} is not one of {', '.join(ROWS)}.")
    planned = plan("few-shot", methods, [name], [], flags.shots, flags.seeds)
    runner, rows = Runner(as_path(folder / "runs"), overrides), []

    def execute(run: "Run") -> int:
        before, programs = clock.read(), clock.programs
        made = runner(run)
        spent = {stage: s - before.get(stage, 0.0) for stage, s in clock.read().items()}
        rows.append((run, spent, clock.programs - programs))
        return made

    failed, _ = sweep(planned, execute)
    if failed:
        sys.exit(f"{failed[0][0]}: {failed[0][1]}")
    costs, seen = Costs(overrides, runner.backbones), Seen()
    counted = [(cost, seen.add(cost)) for run in planned if (cost := costs.of(run))]
    print_stages(data, rows, imported)
    print_runs(rows, [flop for _, flop in counted])
    training, testing = (
        sum(getattr(cost, part) for cost, _ in counted) for part in ("training", "testing")
    )
    return measure(rows, training, testing, decoding(runner, planned[-1]))


def make_jpegs(flags: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Write images and a CLIP of random weights, and return the settings that take them."""
    from benchmarks.jpegs import write_images
    from benchmarks.random_clip import SIZES, random_clip
    from dpt_jax.clip.pretrained import save_orbax

    if flags.clip not in SIZES:
        sys.exit(f"--clip: {flags.clip!r} is not one of {', '.join(SIZES)}.")
    size = write_images(folder / "images", flags.images, flags.classes, flags.pixels)
    save_orbax(random_clip(flags.clip), str(folder / "clip"))
    print(
        f"\n{flags.images:,} test images of {flags.pixels} x {flags.pixels * 3 // 4} pixels, "
        f"{size / 1000:.0f} kB each, {flags.classes} classes, {flags.clip} of random weights.\n"
    )
    return {"dataset.root": str(folder / "images"), "clip.weights": str(folder / "clip")}


Row = tuple["Run", dict[str, float], int]  # a run, its seconds by stage, its compiled programs


def print_stages(data: str, rows: list[Row], imported: float) -> None:
    """Print the seconds and the share of each stage, of all runs."""
    from benchmarks.stages import ORDER

    seconds = {"import": imported}
    for stage in ORDER[1:]:
        seconds[stage] = sum(spent.get(stage, 0.0) for _, spent, _ in rows)
    total = sum(seconds.values())
    print(f"\n## {data}: {len(rows)} runs\n\n| stage | seconds | share |\n| --- | --- | --- |")
    for stage, spent in seconds.items():
        print(f"| {stage} | {spent:.2f} | {100 * spent / total:.1f} % |")
    print(f"| together | {total:.2f} | |")


def print_runs(rows: list[Row], flop: list[float]) -> None:
    """Print what each run took and compiled, and its operations."""
    print("\n| run | seconds | of which compiling | programs | Tflop |")
    print("| --- | --- | --- | --- | --- |")
    for (run, spent, programs), needed in zip(rows, flop, strict=True):
        own, compiling = sum(spent.values()), spent.get("compile", 0.0)
        print(f"| {run} | {own:.2f} | {compiling:.2f} | {programs} | {needed / TERA:.3g} |")
    print(f"\n{sum(programs for *_, programs in rows)} programs were compiled.")


def decoding(runner: Any, run: "Run") -> tuple[float, float]:
    """Return the processor seconds of reading a training and a test image, all threads together."""
    from dpt_jax.data.dataset import load_dataset
    from dpt_jax.data.loader import Loading, TrainLoading, test_batches, train_batches
    from dpt_jax.training.grid import run_config

    config = run_config(run, runner.overrides)
    dataset = load_dataset(config.dataset, run.seed)
    clip = next(iter(runner.backbones.values())).config
    common = {"read": dataset.read, "size": clip.image_size, "preprocessing": clip.preprocessing}
    examples = dataset.test[:200]
    training = TrainLoading(
        **common, examples=examples, batch_size=20, epochs=1, seed=0, augment=config.train.augment
    )
    testing = Loading(**common, examples=examples, batch_size=20)
    found = []
    for batches in (train_batches(training), test_batches(testing)):
        before = resource.getrusage(resource.RUSAGE_SELF)
        images = sum(len(batch["label"]) for batch in batches)
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append(spent / images)
    return found[0], found[1]


def measure(
    rows: list[Row], training: float, testing: float, images: tuple[float, float]
) -> "Measured":
    """Return what the model of the whole table needs of these runs."""
    from benchmarks.stages import COMPILE, LOADED, LOOKING
    from benchmarks.whole_table import Measured

    computing = ("training", "evaluation")
    computed = sum(spent.get(stage, 0.0) for _, spent, _ in rows for stage in computing)
    not_own = {*computing, COMPILE, *LOADED, LOOKING, "weights"}
    own = sum(s for _, spent, _ in rows for stage, s in spent.items() if stage not in not_own)
    methods = len({run.method for run, *_ in rows})
    programs = sum(programs for *_, programs in rows)
    compiling = sum(spent.get(COMPILE, 0.0) for _, spent, _ in rows)
    return Measured(
        run=own / len(rows),
        programs=programs / methods,
        program=compiling / max(programs, 1),
        train_image=images[0],
        test_image=images[1],
        rate=(training + testing) / computed,
    )


def predict(measured: "Measured", efficiency: float) -> None:
    """Print the hours of the whole table by machine, and what is measured of them."""
    from benchmarks.whole_table import MACHINES, hours, whole_table

    table = whole_table()
    print(
        f"\n## DPT's whole table\n\nCounted: {table.runs} runs, {table.trained:,} images to train "
        f"on, {table.looked:,} test images, {table.training / TERA:,.0f} Tflop of training and "
        f"{table.testing / TERA:,.0f} Tflop of testing.\n\n"
        f"Measured here, in the last sweep: {measured.run:.2f} s a run besides computing, "
        f"compiling and reading; {measured.programs:.1f} programs for a method on a dataset, "
        f"{measured.program:.2f} s each; {1e3 * measured.train_image:.2f} and "
        f"{1e3 * measured.test_image:.2f} ms of a core to read a training and a test image; "
        f"{measured.rate / 1e9:.0f} Gflop/s.\n\n"
        f"Extrapolated: other machines reach {100 * efficiency:.0f} % of their peak in bfloat16, "
        "and their cores are as fast as these.\n\n"
        "| machine | hours | runs | compiling | reading test images | training | testing |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for machine in MACHINES:
        found = hours(table, measured, machine, efficiency)
        parts = " | ".join(f"{part:,.2f}" for part in (found.together, *found))
        print(f"| {machine.name} | {parts} |")


if __name__ == "__main__":
    main()
