"""Old names of `dpt_jax.config`, until every import names it."""

from typing import Any

from ml_collections import ConfigDict

from dpt_jax.config import (  # noqa: F401
    CONFIG_FILE,
    SECTION_OF,
    Value,
    check_same_run,
    default_workdir,
    evaluation_dir,
    flat,
    keys_that_may_change,
    prompt_config,
    run_dir,
    shots_in_words,
    templates,
)
from dpt_jax.config import evaluation_config as settings_for_evaluation  # noqa: F401
from dpt_jax.config import load_config as load_saved  # noqa: F401
from dpt_jax.config import method_config as of_method  # noqa: F401
from dpt_jax.config import read_config as load  # noqa: F401
from dpt_jax.config import save_config as save  # noqa: F401
from dpt_jax.config import training_config as settings_for_training  # noqa: F401
from dpt_jax.config import validate as check  # noqa: F401


def set_key(config: ConfigDict, key: str, value: Any) -> None:
    """Set a key."""
    config.update_from_flattened_dict({key: value})
