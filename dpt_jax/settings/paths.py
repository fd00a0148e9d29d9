"""Where runs are kept."""

import itertools

from etils import epath
from ml_collections import ConfigDict

from dpt_jax.io import as_path
from dpt_jax.settings.saved import CONFIG_FILE, load
from dpt_jax.training import prompt_file


def default_workdir(config: ConfigDict) -> epath.Path:
    """Return runs/METHOD/DATASET/SHOTSshot/seedN, and base or new below it for half the classes."""
    return run_dir(as_path("runs"), config)


def run_dir(runs: epath.Path, config: ConfigDict, name: str = "") -> epath.Path:
    """Return the folder of a run below `runs`, see default_workdir.

    name: of what is run, where the settings do not say it.
    """
    dataset = config.dataset
    shots = "all" if dataset.shots < 0 else dataset.shots
    run = runs / (name or config.method) / dataset.name / f"{shots}shot" / f"seed{config.seed}"
    return run if dataset.classes == "all" else run / dataset.classes


def evaluation_dir(run: epath.Path, config: ConfigDict) -> epath.Path:
    """Return RUN/on/DATASET[-CLASSES], for a run's prompts on another dataset or other classes.

    Of a prompt file, RUN is its name without .safetensors. The second folder of images gets its own
    name behind that: RUN/on/folder-NAME.
    """
    dataset = config.dataset
    name = dataset.name if dataset.classes == "all" else f"{dataset.name}-{dataset.classes}"
    on = prompt_file.folder_of(run) / "on"
    if dataset.name != "folder" or not dataset.root:
        return on / name
    root = as_path(dataset.root).resolve()
    names = itertools.chain(
        [name, f"{name}-{root.name}"], (f"{name}-{root.name}-{i}" for i in itertools.count(2))
    )
    return next(on / name for name in names if _root_of(on / name, config) in (None, root))


def _root_of(folder: epath.Path, config: ConfigDict) -> epath.Path | None:
    """Return the images of the evaluation whose results a folder has, None if there is none."""
    if not (folder / CONFIG_FILE).exists():
        return None
    root = load(folder, config).dataset.root
    return as_path(root).resolve() if root else None


def shots_in_words(shots: int) -> str:
    """Return "1 shot", "8 shots", "all images" for -1, "no training" for zero-shot's 0."""
    return {-1: "all images", 0: "no training", 1: "1 shot"}.get(shots, f"{shots} shots")
