"""Convert weights and prompts.

    dpt-jax convert clip SRC DST
    dpt-jax convert clip W DIR
    dpt-jax convert export W FILE.safetensors
    dpt-jax convert peft W DIR
    dpt-jax convert peft DIR --workdir=W [--config=… --config.KEY=VALUE …]
    dpt-jax convert serve W DIR [--clip=WEIGHTS]
    dpt-jax convert onnx W FILE.onnx [--clip=WEIGHTS]
    dpt-jax convert reference CHECKPOINT_DIR --workdir=W [--config=… --config.KEY=VALUE …]
    dpt-jax convert reference --reverse W CHECKPOINT_DIR

`clip` converts any CLIP that `clip.weights` accepts, or that of a run with its learned weights, to
a folder for transformers or, by --layout, for open_clip or Orbax. `peft` writes and reads learned
weights as PEFT's LoRA files. `export` writes the prompts of a workdir to one small file, which
replaces the workdir in predict, --mode=eval, init_from and convert. `serve` compiles the classifier
into a file that runs without this package, and `onnx` into one for onnxruntime and the like
(`pip install 'dpt-jax[onnx]'`). `reference` converts a checkpoint folder of the published PyTorch
code to a workdir; the flags give what it lacks: backbone, dataset, class position, top_k.
"""

import argparse
from typing import TYPE_CHECKING

from dpt_jax import cli
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, kinds = parser.add_argument, ("clip", "export", "serve", "onnx", "peft", "reference")
    add("what", choices=kinds, metavar="WHAT", help=", ".join(kinds))
    add("source", metavar="SRC", help="see above")
    add("target", metavar="DST", nargs="?", help="see above")
    add("--workdir", metavar="W", help="reference, peft: the run to write")
    add("--reverse", action="store_true", help="reference: to the published code's format")
    add("--merge", action="store_true", help="export: learned weights, merged into their CLIP")
    add("--layout", choices=("transformers", "open_clip", "orbax"), default="transformers",
        help="clip: layout of the folder")  # fmt: skip
    cli.add_clip(parser)
    cli.add_config(parser)


def run(flags: argparse.Namespace) -> None:
    from dpt_jax.io import as_path

    what, given = flags.what, flags.given
    to_run = flags.target is None
    may = {"reference": not flags.reverse, "peft": to_run}
    if to_run != may.get(what, False) or to_run != (flags.workdir is not None):
        raise UserError(
            "convert: name SRC and DST, or `reference CHECKPOINT_DIR --workdir=W`, or `peft DIR "
            "--workdir=W`."
        )
    source, target = as_path(flags.source), as_path(flags.workdir if to_run else flags.target)
    from dpt_jax import convert

    if to_run and what == "peft":
        convert.read_peft(source, target, given.config)
    elif to_run:
        convert.convert_reference(source, target, given.config, given.overrides)
    elif what == "reference":
        convert.reverse_reference(source, target, flags.clip)
    elif what == "clip" or (what == "export" and flags.merge):
        convert.convert_clip(flags.source, target, flags.clip, flags.layout)
    elif what == "peft":
        convert.write_peft(source, target)
    elif what == "export":
        from dpt_jax.io import size_of
        from dpt_jax.logging import say
        from dpt_jax.predictor import export

        config, saved = convert.read_run(source)
        export(config, saved, source, target)
        say(f"wrote {target}: {config.method} prompts, {size_of(target) / 1024:.0f} kB")
    else:
        compile_program(what, source, target, flags.clip)


def compile_program(what: str, source: "epath.Path", target: "epath.Path", clip: str) -> None:
    """Write the classifier of a run as a program of JAX ("serve") or as an ONNX file ("onnx")."""
    from dpt_jax.io import make_folder, size_of
    from dpt_jax.logging import say
    from dpt_jax.predictor import load, program

    if what == "onnx" and target.suffix != ".onnx":
        raise UserError(f"convert onnx: {target} should end in .onnx.")
    predictor, files = load(source, clip=clip), [target]
    if what == "onnx":
        program.write_onnx(predictor, target)
    else:
        files = program.write(predictor, make_folder(target, "convert serve"))
    for file in files:
        say(f"wrote {file} ({size_of(file) / 1024:,.0f} kB)")
