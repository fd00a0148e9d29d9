"""The settings of a run: one schema, the command line, config.json, and where runs are kept.

Everything that other rooms use is named here: `from dpt_jax import settings`.
"""

from dpt_jax.data.catalogue import DEFAULT_DATASET
from dpt_jax.settings.arguments import ConfigArguments, read_config_arguments
from dpt_jax.settings.config import (
    SECTION_OF,
    of_method,
    prompt_config,
    settings_for_evaluation,
    settings_for_training,
    templates,
)
from dpt_jax.settings.keys import KEYS, SCHEMA, Key, Resume, Value
from dpt_jax.settings.paths import (
    default_workdir,
    evaluation_dir,
    run_dir,
    shots_in_words,
)
from dpt_jax.settings.saved import (
    CONFIG_FILE,
    check_same_run,
    keys_that_may_change,
    load,
    load_saved,
    save,
)
from dpt_jax.settings.schema import check, defaults, flat, nearest, page, set_key

__all__ = [
    "CONFIG_FILE",
    "DEFAULT_DATASET",
    "KEYS",
    "SCHEMA",
    "SECTION_OF",
    "ConfigArguments",
    "Key",
    "Resume",
    "Value",
    "check",
    "check_same_run",
    "default_workdir",
    "defaults",
    "evaluation_dir",
    "flat",
    "keys_that_may_change",
    "load",
    "load_saved",
    "nearest",
    "of_method",
    "page",
    "prompt_config",
    "read_config_arguments",
    "run_dir",
    "save",
    "set_key",
    "settings_for_evaluation",
    "settings_for_training",
    "shots_in_words",
    "templates",
]
