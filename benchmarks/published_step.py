"""Times the training step of a method's published PyTorch code, imported from a clone of it.

    python benchmarks/published_step.py --code=CLONE --method=cocoop [--clip=vit-b-16]
        [--classes=100] [--batch=4] [--steps=2]

The trainer builds its model and takes its step as published, but in float32 instead of float16,
with random images and weights. published.py lists the clones; dassl_stand_in.py replaces the
package that trainers inherit from. Prints the line of torch_step.py. Raises if this package learns
another number of values, or computes another loss of the first step. Uses a GPU if there is one.
"""

import contextlib
import importlib
import inspect
import io
import operator
import os
import pathlib
import sys
import tempfile
import types
from collections.abc import Iterator
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ["JAX_PLATFORMS"] = "cpu"  # JAX computes one loss to compare; the GPU is for PyTorch

import numpy as np
import torch
from absl import app, flags

from benchmarks import dassl_stand_in
from benchmarks.published import PUBLISHED, Branch, Counterpart, Published, find
from benchmarks.random_clip import SIZES
from benchmarks.timing import FLAGS, define_flags, print_line, torch_times
from dpt_jax.cli.terminal import guard
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.errors import UserError

define_flags("vit-b-16", batch=4, steps=2, methods=PUBLISHED, method=None)
flags.DEFINE_string("code", None, "A clone of the published code.", required=True)
flags.mark_flag_as_required("method")
flags.register_validator("dtype", lambda dtype: dtype == "float32", "it can only be float32")
TOLERANCE = 1e-4  # of a loss


def main(arguments: list[str]) -> None:
    """Time the step that the flags name and print the line."""
    guard(time_step, arguments)


def time_step(_: list[str]) -> None:
    """Build the trainer, time its step, compare its first loss, and print the line."""
    code = PUBLISHED[FLAGS.method]
    folder = find(pathlib.Path(FLAGS.code), FLAGS.method, FLAGS.clip, FLAGS.batch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator, size = np.random.default_rng(0), SIZES[FLAGS.clip].image_size
    names = imagenet_classnames()[: FLAGS.classes]
    images = generator.standard_normal((FLAGS.batch, 3, size, size), np.float32)
    labels = generator.integers(0, len(names), FLAGS.batch)
    batch = {"img": torch.tensor(images).to(device), "label": torch.tensor(labels).to(device)}
    here = Counterpart(FLAGS.method, FLAGS.clip, names)
    torch.manual_seed(0)
    with (
        contextlib.redirect_stdout(io.StringIO()),  # trainers print
        tempfile.TemporaryDirectory() as temporary,
        in_float32(device),
    ):
        weights = pathlib.Path(temporary) / "clip.pt"
        trainer = build(code, folder, here.configuration(), names, weights, device)
        same("values are learned", trainer.learned(), here.learned(), 0)
        begun = {
            name: {key: host(x) for key, x in model.named_parameters() if x.requires_grad}
            for name, model in trainer.models.items()
        }
        found: list[float] = []
        result = torch_times(lambda: found.append(trainer.forward_backward(batch)["loss"]))
        texts = host(operator.attrgetter(code.texts)(trainer.model)) if code.texts else None
        same("is the loss", found[0], here.loss(weights, begun, texts, images, labels), TOLERANCE)
    print_line(result, torch=torch.__version__)


@contextlib.contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Undo the code's casts to float16 and, on a CPU, to a GPU."""

    def itself(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return tensor

    torch.backends.cudnn.allow_tf32 = False
    with contextlib.ExitStack() as patches:
        for name in ("half", "cuda") if device.type == "cpu" else ("half",):
            patches.enter_context(mock.patch.object(torch.Tensor, name, itself))
        yield


def build(
    code: Published,
    folder: pathlib.Path,
    cfg: Branch,
    names: list[str],
    weights: pathlib.Path,
    device: torch.device,
) -> dassl_stand_in.TrainerX:
    """Return the trainer with its model, whose random weights are written to `weights`."""
    dassl_stand_in.install()
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(code.module)
        clip = importlib.import_module("clip.clip")
        model = importlib.import_module("clip.model")
    except ModuleNotFoundError as missing:
        raise UserError(
            f"--code={folder}: the code imports {missing.name}, which is missing: install it, or "
            "clone the whole repository."
        ) from missing
    torch.save(random_weights(model, SIZES[FLAGS.clip]), weights)
    # The code loads this file instead of downloading one.
    vars(clip)["_download"] = lambda url: str(weights)
    vars(clip)["_MODELS"].setdefault(FLAGS.clip, "")
    # PromptSRC's texts are computed before training: the number of templates costs no step.
    vars(module)["IMAGENET_TEMPLATES"] = ["a photo of a {}."]
    return getattr(module, code.trainer)(cfg, names, device)


def random_weights(model: types.ModuleType, sizes: CLIPConfig) -> dict[str, torch.Tensor]:
    """Return the initial weights of the code's own CLIP, without prompts."""
    given: dict[str, object] = {
        "embed_dim": sizes.embed_dim,
        "image_resolution": sizes.image_size,
        "vision_layers": sizes.vision.layers,
        "vision_width": sizes.vision.width,
        "vision_patch_size": sizes.patch_size,
        "context_length": sizes.context_length,
        "vocab_size": sizes.vocab_size,
        "transformer_width": sizes.text.width,
        "transformer_heads": sizes.text.heads,
        "transformer_layers": sizes.text.layers,
    }
    if "design_details" in inspect.signature(model.CLIP).parameters:
        none = dict.fromkeys(("vision_depth", "language_depth", "vision_ctx", "language_ctx"), 0)
        given["design_details"] = {"trainer": "CoOp", **none}
    return model.CLIP(**given).state_dict()


def host(tensor: torch.Tensor) -> np.ndarray:
    """Return a copy that a step does not change."""
    return tensor.detach().cpu().numpy().copy()


def same(what: str, theirs: float, ours: float, tolerance: float) -> None:
    """Raise UserError if two numbers differ by more than a share of theirs."""
    if not abs(theirs - ours) <= tolerance * abs(theirs):
        raise UserError(
            f"--code={FLAGS.code}: {theirs:g} {what} in the published code of {FLAGS.method}, "
            f"{ours:g} here: take commit {PUBLISHED[FLAGS.method].commit[:7]}."
        )


if __name__ == "__main__":
    app.run(main)
