"""Converts weights and prompts.

    python -m dpt_jax.convert clip SRC DST
    python -m dpt_jax.convert export W FILE.safetensors
    python -m dpt_jax.convert serve W DIR [--clip=WEIGHTS]
    python -m dpt_jax.convert reference CHECKPOINT_DIR --workdir=W [--config=… --config.KEY=VALUE …]
    python -m dpt_jax.convert reference --reverse W CHECKPOINT_DIR

`clip` turns any CLIP that `clip.weights` takes into an Orbax directory (local
or gs://). `export` writes the prompts of a workdir to one small file that
stands wherever a workdir does that is only read: predict, --mode=eval,
init_from, and here. `serve` compiles the classifier into a file that runs
without this package. `reference` turns a checkpoint folder of the published PyTorch code
into a workdir that --mode=eval and init_from take; what a checkpoint does not
hold (backbone, dataset, class position, top_k) comes from the flags. With
--reverse it goes the other way.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from dpt_jax.clip.pretrained import load_clip, save_orbax
from dpt_jax.commands import flags as cli
from dpt_jax.errors import UserError
from dpt_jax.inference.provenance import outdated
from dpt_jax.inference.published import convert_reference, read_run, reverse_reference
from dpt_jax.inference.results import RESULTS_FILE, read_result
from dpt_jax.runtime.console import say
from dpt_jax.runtime.files import make_folder
from dpt_jax.settings import config as configs
from dpt_jax.storage import prompt_file

USAGE = (
    "use `convert clip SRC DST`, `export W FILE.safetensors`, `serve W DIR`, `reference CHECKPOINT_DIR --workdir=W` "
    "or `reference --reverse W CHECKPOINT_DIR`"
)


def main(argv: Sequence[str]) -> None:
    match list(argv[1:]):
        case ["clip", source, target]:
            save_orbax(load_clip(source), target)
            say(f"wrote {target}")
        case ["export", source, target]:
            export(_path(source), _path(target))
        case ["serve", source, target]:
            serve(_path(source), _path(target))
        case ["reference", source, target] if flags.FLAGS.reverse:
            reverse_reference(_path(source), _path(target))
        case ["reference", directory] if not flags.FLAGS.reverse:
            if not flags.FLAGS.workdir:
                raise UserError(
                    "convert reference: --workdir is not given; it says where the converted prompts go."
                )
            config, overrides, _ = cli.flag_config()
            convert_reference(_path(directory), _path(flags.FLAGS.workdir), config, overrides)
        case _:
            raise UserError(f"convert: unknown arguments {argv[1:]}; {USAGE}.")


def _path(argument: str) -> pathlib.Path:
    return pathlib.Path(argument).expanduser()


def export(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the prompts of a workdir to a prompt file.  Raises UserError where there are none, or no such name."""
    if target.suffix != prompt_file.SUFFIX:
        raise UserError(f"convert export: {target} should end in {prompt_file.SUFFIX}.")
    config, saved = read_run(source)
    if prompt_file.is_prompt_file(source):
        results = prompt_file.read_header(source).get("results")
    else:
        results = read_result(source / RESULTS_FILE) if (source / RESULTS_FILE).is_file() else None
        if results and (why := outdated(results, source)):
            say(f"{why}: these results are left out of {target}.")
            results = None
    prompt_file.write(target, saved.step, saved.prompts, saved.meta, config.to_dict(), results)
    say(f"wrote {target}: {configs.method(config)} prompts, {target.stat().st_size / 1024:.0f} kB")


def serve(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the classifier of a workdir as a program.  Raises UserError where it cannot be loaded."""
    from dpt_jax.inference import program as programs
    from dpt_jax.inference.predictor import load

    predictor = load(source, clip=flags.FLAGS.clip)
    for file in programs.write(predictor, make_folder(target, "convert serve")):
        say(f"wrote {file} ({file.stat().st_size / 1024:,.0f} kB)")


if __name__ == "__main__":
    cli.define_flags()
    flags.DEFINE_bool("reverse", False, "From a workdir to a checkpoint of the published code.")
    cli.define_clip_flag()
    cli.run(main)
