"""Which prompts a workdir holds, without reading them where that can be avoided."""

import json
from typing import NamedTuple

from etils import epath

from dpt_jax.runtime.files import is_remote
from dpt_jax.storage import prompt_file
from dpt_jax.storage.checkpoints import DIGESTS, FOLDER, digest, load_newest


class Held(NamedTuple):
    """The step and the digest of prompts, see `checkpoints.digest`."""

    step: int
    prompts: str


def newest(source: epath.Path) -> Held | None:
    """Return which prompts are the newest of a workdir or a prompt file; None where it has none.

    Raise UserError where they cannot be read.
    """
    if not prompt_file.is_prompt_file(source):
        folder = source / FOLDER
        steps = _steps(folder)
        if not steps:
            return None
        try:
            meta = json.loads((folder / str(max(steps)) / "meta" / "metadata").read_bytes())
            return Held(max(steps), str(meta[DIGESTS]["prompts"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # of an older version, or damaged: the prompts themselves tell
    elif not source.is_file():
        return None
    saved = load_newest(source)
    return Held(saved.step, digest(saved.prompts))


def _steps(folder: epath.Path) -> list[int]:
    """Return the steps that have a checkpoint in a folder of them."""
    if is_remote(folder):
        from dpt_jax.storage.mirror import whole_steps

        return whole_steps(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [int(name) for name in names if name.isdecimal()]
