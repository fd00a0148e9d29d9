"""What main.py and the modules run with `python -m` share: flags, and one-sentence errors."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from dpt_jax.errors import UserError


def define_flags() -> None:
    """--config, --workdir."""
    config_flags.DEFINE_config_file("config", "configs/dpt.py", "configs/METHOD.py or configs/METHOD.py:DATASET.")
    flags.DEFINE_string(
        "workdir",
        None,
        "Where the run is kept; default runs/METHOD/DATASET/SHOTSshot/seedN, then base or new where these are the "
        "classes, and WORKDIR/on/DATASET for --mode=eval --config.init_from=WORKDIR.",
    )


def define_host_flags() -> None:
    """--coordinator, --processes, --process, --cluster: one process a host, of one run."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the run has several.")
    flags.DEFINE_integer("processes", None, "How many there are.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which of them this is, from 0 on.", lower_bound=0)
    flags.DEFINE_bool(
        "cluster", False, "Take these three from the environment: a TPU pod slice (srun and mpirun need no flag)."
    )


def start() -> None:
    """Joins the hosts that the flags or the environment name, and keeps what is compiled for later runs."""
    from dpt_jax import devices

    values = flags.FLAGS
    devices.connect(devices.Hosts(values.coordinator, values.processes, values.process, values.cluster))
    devices.keep_compiled()


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """absl's app.run, where wrong input ends in one sentence and exit code 2."""

    def parse(argv: Sequence[str]) -> Sequence[str]:
        try:
            return flags.FLAGS(argv)
        except (flags.Error, UserError, KeyError, AttributeError, TypeError, ValueError, OSError) as reason:
            _stop(reason.args[0] if isinstance(reason, KeyError) and reason.args else reason)
            raise AssertionError from reason

    def guarded(argv: Sequence[str]) -> Any:
        try:
            return main(argv)
        except UserError as reason:
            _stop(reason)

    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=parse)


def flag_config() -> tuple[ConfigDict, dict[str, Any], bool]:
    """(the configuration of the flags, what the command line sets in it, whether it names a dataset)."""
    flag = flags.FLAGS["config"]
    name = config_flags.get_config_filename(flag)
    folder, (file, colon, _) = os.path.dirname(name), os.path.basename(name).partition(":")
    if not os.path.isfile(os.path.join(folder, file)):
        raise UserError(
            f"--config: there is no file {os.path.join(folder, file)}; those of the methods are in configs/."
        )
    return flags.FLAGS.config, config_flags.get_override_values(flag), bool(colon)


def _stop(reason: object) -> None:
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
    sys.exit(2)
