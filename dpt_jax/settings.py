"""Old names of `dpt_jax.config`, until every import names it."""

from dpt_jax.config import (
    CONFIG_FILE,
    SECTION_OF,
    Value,
    check_same_run,
    default_workdir,
    evaluation_dir,
    flat,
    keys_that_may_change,
    load,
    load_saved,
    prompt_config,
    run_dir,
    save,
    set_key,
    shots_in_words,
    templates,
)
from dpt_jax.config import for_evaluation as settings_for_evaluation
from dpt_jax.config import for_training as settings_for_training
from dpt_jax.config import published as of_method
from dpt_jax.config import validate as check

__all__ = [
    "CONFIG_FILE",
    "SECTION_OF",
    "Value",
    "check",
    "check_same_run",
    "default_workdir",
    "evaluation_dir",
    "flat",
    "keys_that_may_change",
    "load",
    "load_saved",
    "of_method",
    "prompt_config",
    "run_dir",
    "save",
    "set_key",
    "settings_for_evaluation",
    "settings_for_training",
    "shots_in_words",
    "templates",
]
