"""Which prompts a workdir holds, without reading them where that can be avoided."""

import json
from typing import NamedTuple

from etils import epath

from dpt_jax.storage.shelf import steps_of
from dpt_jax.training import prompt_file
from dpt_jax.training.checkpoints import DIGESTS, FOLDER, load_newest
from dpt_jax.training.digests import digest


class Held(NamedTuple):
    """The step and the digest of prompts, see `digests.digest`."""

    step: int
    prompts: str


def newest(source: epath.Path) -> Held | None:
    """Return which prompts are the newest of a workdir or a prompt file; None where it has none.

    Raise UserError where they cannot be read.
    """
    if not prompt_file.is_prompt_file(source):
        folder = source / FOLDER
        steps = steps_of(folder)
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
