"""Times the training step of a method's published PyTorch code, imported from a clone of it.

    python benchmarks/published_step.py --code=CLONE --method=cocoop [--clip=vit-b-16]
        [--classes=100] [--batch=4] [--steps=2]

The trainer builds its model and takes its step as published, but in float32 instead of float16,
with random images and weights. published.py lists the clones; dassl_stand_in.py replaces the
package that trainers inherit from. CLIP-LoRA has no trainer: see published_lora.py. Prints the line
of torch_step.py. Raises if the number of learned values or the loss of the first step differs from
this package's. Uses a GPU if there is one.
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

from benchmarks import dassl_stand_in, published_lora
from benchmarks.published import PUBLISHED, Counterpart, Published, find
from benchmarks.random_clip import SIZES
from benchmarks.timing import FLAGS, define_flags, print_line, torch_result, torch_times
from dpt_jax.cli import guard
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
        module, model = imported(code, folder, weights)
        begun, texts = {}, None
        if code.trainer == "run_lora":
            clip = random_clip(model, SIZES[FLAGS.clip]).to(device)
            torch.save(clip.state_dict(), weights)
            trained = published_lora.train(module, clip, names, batch, FLAGS.steps)
            result, losses, learned = torch_result(trained.seconds), trained.losses, trained.learned
        else:
            torch.save(random_clip(model, SIZES[FLAGS.clip]).state_dict(), weights)
            trainer = getattr(module, code.trainer)(here.configuration(), names, device)
            learned = trainer.learned()
            begun = {
                name: {key: host(x) for key, x in part.named_parameters() if x.requires_grad}
                for name, part in trainer.models.items()
            }
            losses = []
            result = torch_times(lambda: losses.append(trainer.forward_backward(batch)["loss"]))
            texts = host(operator.attrgetter(code.texts)(trainer.model)) if code.texts else None
        same("values are learned", learned, here.learned(), 0)
        same("is the loss", losses[0], here.loss(weights, begun, texts, images, labels), TOLERANCE)
    print_line(result, torch=torch.__version__)


@contextlib.contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Undo the code's casts to float16 and, on a CPU, to a GPU."""

    def itself(value: object, *_: object, **__: object) -> object:
        return value

    torch.backends.cudnn.allow_tf32 = False
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(torch.Tensor, "half", itself))
        if device.type == "cpu":
            patches.enter_context(mock.patch.object(torch.Tensor, "cuda", itself))
            patches.enter_context(mock.patch.object(torch.nn.Module, "cuda", itself))
        yield


def imported(
    code: Published, folder: pathlib.Path, weights: pathlib.Path
) -> tuple[types.ModuleType, types.ModuleType]:
    """Return the code's modules of the trainer and of CLIP, which loads this file of weights."""
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
    # The code loads this file instead of downloading one.
    vars(clip)["_download"] = lambda url: str(weights)
    vars(clip)["_MODELS"].setdefault(FLAGS.clip, "")
    # PromptSRC's texts are computed before training, so their number does not change a step.
    vars(module)["IMAGENET_TEMPLATES"] = ["a photo of a {}."]
    return module, model


def random_clip(model: types.ModuleType, sizes: CLIPConfig) -> torch.nn.Module:
    """Return the code's own CLIP with its initial weights, without prompts."""
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
    return model.CLIP(**given)


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
