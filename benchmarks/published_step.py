"""Times the training step of a method's published PyTorch code, imported from a clone of it.

    python benchmarks/published_step.py --code=CLONE --method=cocoop [--clip=vit-b-16]
        [--classes=100] [--batch=4] [--steps=2]

Their trainer builds its model and takes its step as published, but in float32 instead of float16,
with random images and a CLIP of random weights. published_code.py says which clone a method needs,
and dassl_stand_in.py is in place of the package that the trainers inherit from. Prints the line of
torch_step.py; where this package learns another number of values, or has another loss in the first
step, there is a sentence and no time. A GPU is used where torch finds one.
"""

import contextlib
import importlib
import inspect
import io
import json
import operator
import os
import pathlib
import sys
import tempfile
import types
from collections.abc import Iterator
from unittest import mock

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# JAX computes one loss to compare with: a GPU is torch's.
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import torch
from absl import app, flags

from benchmarks import dassl_stand_in
from benchmarks.published_code import PUBLISHED, Branch, Published, configuration, find
from benchmarks.published_loss import Counterpart
from benchmarks.random_clip import SIZES
from benchmarks.torch_timing import timed
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.errors import UserError

CODE = flags.DEFINE_string("code", None, "A clone of the published code.", required=True)
METHOD = flags.DEFINE_enum("method", None, list(PUBLISHED), "What is trained.", required=True)
CLIP = flags.DEFINE_enum("clip", "vit-b-16", list(SIZES), "The size of the backbone.")
CLASSES = flags.DEFINE_integer("classes", 100, "Class texts.", lower_bound=2)
BATCH = flags.DEFINE_integer("batch", 4, "Images a step.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "How many are timed.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32"], "Of the computation.")
TOLERANCE = 1e-4  # of a loss


def main(_: list[str]) -> None:
    """Time the step that the flags name and print the line."""
    try:
        print(json.dumps(report(PUBLISHED[METHOD.value], pathlib.Path(CODE.value))))
    except UserError as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2) from None


def report(code: Published, clone: pathlib.Path) -> dict[str, object]:
    """Return the line.  Raise UserError where the code is not there or its step is another one."""
    folder = find(clone, METHOD.value, CLIP.value, BATCH.value)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator, size = np.random.default_rng(0), SIZES[CLIP.value].image_size
    names = imagenet_classnames()[: CLASSES.value]
    images = generator.standard_normal((BATCH.value, 3, size, size), np.float32)
    labels = generator.integers(0, len(names), BATCH.value)
    batch = {"img": torch.tensor(images).to(device), "label": torch.tensor(labels).to(device)}
    here = Counterpart(METHOD.value, CLIP.value, names)
    cfg = configuration(here.config, here.prompted, CLIP.value)
    torch.manual_seed(0)
    # What the trainers print is not the line.
    with (
        contextlib.redirect_stdout(io.StringIO()),
        tempfile.TemporaryDirectory() as temporary,
        in_float32(device),
    ):
        weights = pathlib.Path(temporary) / "clip.pt"
        trainer = build(code, folder, cfg, names, weights, device)
        same("values are learned", trainer.learned(), here.learned(), 0)
        begun = {
            name: {key: host(x) for key, x in model.named_parameters() if x.requires_grad}
            for name, model in trainer.models.items()
        }
        found: list[float] = []
        result = timed(
            lambda: found.append(trainer.forward_backward(batch)["loss"]),
            STEPS.value,
            BATCH.value,
            device,
        )
        texts = host(operator.attrgetter(code.texts)(trainer.model)) if code.texts else None
        same("is the loss", found[0], here.loss(weights, begun, texts, images, labels), TOLERANCE)
    return {
        "clip": CLIP.value,
        "classes": len(names),
        "batch": BATCH.value,
        "method": METHOD.value,
        "dtype": DTYPE.value,
        **result,
    }


@contextlib.contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Undo the casts to float16 that are written into the code, and on a CPU those to a GPU."""

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
    """Return the trainer with its model, of random weights that are written to a file.

    Raise UserError where the code imports something that is not installed.
    """
    dassl_stand_in.install()
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(code.module)
        clip = importlib.import_module("clip.clip")
    except ModuleNotFoundError as missing:
        raise UserError(
            f"--code={folder}: the code imports {missing.name}, which is not here: install it, or "
            "clone the code whole."
        ) from missing
    torch.save(random_weights(importlib.import_module("clip.model"), SIZES[CLIP.value]), weights)
    # Their loading goes on as published, from the file that would have been downloaded.
    vars(clip)["_download"] = lambda url: str(weights)
    vars(clip)["_MODELS"].setdefault(CLIP.value, "")
    # PromptSRC's texts are computed before the training, and no step sees of how many templates.
    vars(module)["IMAGENET_TEMPLATES"] = ["a photo of a {}."]
    return getattr(module, code.trainer)(cfg, names, device)


def random_weights(model: types.ModuleType, sizes: CLIPConfig) -> dict[str, torch.Tensor]:
    """Return what a CLIP of their class begins with, which has no prompt."""
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
    """Raise UserError where two numbers differ by more than a share of theirs."""
    if not abs(theirs - ours) <= tolerance * abs(theirs):
        raise UserError(
            f"--code={CODE.value}: {theirs:g} {what} in the published code of {METHOD.value} and "
            f"{ours:g} here, so their step is not this method's: take the commit "
            f"{PUBLISHED[METHOD.value].commit[:7]}."
        )


if __name__ == "__main__":
    app.run(main)
