"""One run from its settings to its results, for main.py and for sweeps."""

from etils import epath
from ml_collections import ConfigDict

from dpt_jax import settings
from dpt_jax.inference.evaluation import evaluate
from dpt_jax.inference.experiment import prepare, saved_prompts
from dpt_jax.inference.results import summary
from dpt_jax.runtime.console import say
from dpt_jax.runtime.files import as_path
from dpt_jax.storage.checkpoints import FOLDER
from dpt_jax.training.loop import train


def train_and_evaluate(config: ConfigDict, workdir: epath.Path, changed: bool = False) -> None:
    """Train in `workdir`, or go on there, and evaluate.

    config: checked. changed: whether config.json may be written anew.
    """
    experiment = prepare(config)
    (settings.save if changed else settings.save_once)(config, workdir)
    if experiment.model.prompts.learned:
        train(experiment, workdir)
    # Those that are on disk: results belong to them.
    say(summary(evaluate(experiment, saved_prompts(experiment, workdir), workdir)))
    say(f"results: {workdir / 'results.json'}")


def evaluate_saved(config: ConfigDict, workdir: epath.Path, named: bool) -> None:
    """Evaluate saved prompts, and write the results to `workdir`.

    named: whether the prompts are those that config.init_from names, and not the workdir's own.
    """
    experiment = prepare(config)
    trained_here = (workdir / FOLDER).exists()
    elsewhere = config.init_from and (named or not trained_here)
    saved = saved_prompts(experiment, as_path(config.init_from) if elsewhere else workdir)
    # A run keeps the settings that it was trained with; elsewhere, they are those of the results.
    (settings.save_once if trained_here else settings.save)(config, workdir)
    say(summary(evaluate(experiment, saved, workdir)))
    say(f"results: {workdir / 'results.json'}")
