"""What main.py and the modules run with `python -m` share: flags, and one-sentence errors."""

import errno
import io
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from dpt_jax.inference.predictor import Predictor


INTERRUPTED = 130  # Ctrl-C while there is nothing to save
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def define_flags() -> None:
    """--config, --workdir."""
    try:
        config_flags.DEFINE_config_file(
            "config", "configs/dpt.py", "configs/METHOD.py or configs/METHOD.py:DATASET."
        )
    except (KeyError, AttributeError, TypeError, ValueError) as reason:
        # A --config.KEY=VALUE in front of, or without, --config=FILE is looked at here already.
        _stop(_about_config(sys.argv[1:]) or reason)
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
        "cluster",
        False,
        "Take these three from the environment: a TPU pod slice (srun and mpirun need no flag).",
    )


def define_predictor_flags() -> None:
    """--workdir, --clip: a trained prompt and its backbone."""
    flags.DEFINE_string(
        "workdir", None, "The workdir of a run, or a file of `python -m dpt_jax.convert export`."
    )
    define_clip_flag()


def define_clip_flag() -> None:
    """--clip."""
    flags.DEFINE_string("clip", "", "Where CLIP's weights are, if not where the training had them.")


def load_predictor(batch_size: int, classnames: Sequence[str] | None = None) -> "Predictor":
    """The predictor of these flags.  batch_size: images that a device takes at a time."""
    from dpt_jax.inference.predictor import load

    return load(workdir(), classnames, flags.FLAGS.clip, batch_size)


def workdir() -> pathlib.Path:
    """--workdir, where it must be given.  Raises UserError."""
    if not flags.FLAGS.workdir:
        raise UserError(
            "--workdir is not given: the workdir of a run, or a file of `python -m dpt_jax.convert export`."
        )
    return pathlib.Path(flags.FLAGS.workdir).expanduser()


def make_folder(folder: pathlib.Path, flag: str) -> pathlib.Path:
    """The folder, which is there now.  Raises UserError naming the flag where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise UserError(f"{flag}: {folder} cannot be made ({reason}).") from reason
    return folder


def start() -> None:
    """Joins the hosts that the flags or the environment name, and keeps what is compiled for later runs."""
    from dpt_jax.runtime import devices

    values = flags.FLAGS
    devices.connect(
        devices.Hosts(values.coordinator, values.processes, values.process, values.cluster)
    )
    devices.keep_compiled()


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """absl's app.run, where wrong input ends in one sentence and exit code 2."""

    def parse(argv: Sequence[str]) -> Sequence[str]:
        try:
            return flags.FLAGS(argv)
        except (
            flags.Error,
            UserError,
            KeyError,
            AttributeError,
            TypeError,
            ValueError,
            OSError,
        ) as reason:
            _stop(
                _about_config(argv) or (reason.args[0] if isinstance(reason, KeyError) else reason)
            )

    def guarded(argv: Sequence[str]) -> Any:
        try:
            return main(argv)
        except (Exception, KeyboardInterrupt) as reason:
            _end_other_hosts(reason)
            raise

    def ended(argv: Sequence[str]) -> Any:
        try:
            return guarded(argv)
        except UserError as reason:
            if flags.FLAGS.debug:
                raise
            _stop(reason)
        except BrokenPipeError:  # whoever reads, such as `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except KeyboardInterrupt:
            print("stopped.", file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)
        except OSError as reason:
            if reason.errno not in NO_ROOM or flags.FLAGS.debug:
                raise
            _stop(
                f"{reason.filename or 'a file'} cannot be written ({reason.strerror}): make room, and try again."
            )

    flags.DEFINE_bool("debug", False, "Show where in the program wrong input was noticed.")

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    logging.set_verbosity(logging.WARNING)
    app.run(ended, flags_parser=parse)


def _end_other_hosts(reason: BaseException) -> None:
    """End all hosts as this one ends, which does not return then; with one host do nothing."""
    if "jax" in sys.modules:
        from dpt_jax.runtime import failures

        failures.end_all(reason)


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


def _about_config(argv: Sequence[str]) -> str:
    """What is wrong with the first --config.KEY=VALUE that no configuration can have; "" if there is none."""
    from configs.dpt import get_config
    from dpt_jax.settings.config import flat, nearest

    config = get_config()
    known = list(flat(config.to_dict()))
    for argument in argv:
        name, given, value = argument.lstrip("-").partition("=")
        key = name.removeprefix("config.")
        if key == name or not argument.startswith("-"):
            continue
        if key not in known:
            return f"--config.{key}: there is no such key{nearest(key, known)}"
        section, _, last = key.rpartition(".")
        wanted = (config[section] if section else config).get_type(last)
        try:
            if given and wanted in (int, float):
                wanted(value)
        except ValueError:
            return f"--config.{key}={value}: give a {'whole ' if wanted is int else ''}number."
        if given and wanted is bool and value.lower() not in ("true", "false", "t", "f", "1", "0"):
            return f"--config.{key}={value}: give true or false."
    return ""


def _stop(reason: object) -> NoReturn:
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
    sys.exit(2)
