"""Times the step of train_step.py as PyTorch code usually does it, on the same machine.

    python benchmarks/torch_step.py [--clip=vit-b-32] [--classes=100] [--batch=32] [--method=dpt]
        [--dtype=float32] [--steps=5]

The towers are transformers' CLIPModel with random weights, and torch_twin.py says what a step
does: forward, backward, SGD. It needs torch, and uses a GPU where torch finds one. Prints one
JSON line.
"""

import json
import os
import pathlib
import sys
from typing import Any

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# JAX is asked for shapes alone: a GPU is torch's.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import torch
import transformers
from absl import app, flags
from torch.nn.functional import normalize

from benchmarks.random_clip import SIZES, openai_tokenizer, published_settings
from benchmarks.torch_timing import timed
from benchmarks.torch_twin import Twin
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.transformers_config import config_to_dict
from dpt_jax.config import prompt_config
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.methods import TRAINED
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts.text import context_tokens

CLIP = flags.DEFINE_enum("clip", "vit-b-32", list(SIZES), "The size of the backbone.")
CLASSES = flags.DEFINE_integer("classes", 100, "Class texts.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 32, "Images a step.", lower_bound=1)
METHOD = flags.DEFINE_enum("method", "dpt", TRAINED, "What is trained.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
STEPS = flags.DEFINE_integer("steps", 5, "How many are timed.", lower_bound=1)


def make_clip(sizes: CLIPConfig) -> transformers.CLIPModel:
    """Return a frozen CLIPModel with random weights."""
    config = transformers.CLIPConfig.from_dict(config_to_dict(sizes))
    return transformers.CLIPModel(config).eval().requires_grad_(False)


def tokenized(names: list[str], words: int) -> torch.Tensor:
    """Return the tokens (C, 77) of "X … X NAME.", with so many X."""
    tokenizer = openai_tokenizer()
    rows = torch.zeros(len(names), 77, dtype=torch.long)
    for row, name in zip(rows, names, strict=True):
        own = [tokenizer.start, *[tokenizer.encode("x")[0]] * words, *tokenizer.encode(f"{name}.")]
        row[: len(own) + 1] = torch.tensor([*own, tokenizer.end])
    return rows


def main(_: list[str]) -> None:
    """Time the step that the flags name and print the line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, DTYPE.value)
    torch.manual_seed(0)
    sizes = SIZES[CLIP.value]
    clip: Any = make_clip(sizes)
    config = published_settings(METHOD.value, CLIP.value)
    words = len(context_tokens(config.text_prompt.init, openai_tokenizer()))
    prompted = prompt_config(config, CLASSES.value, sizes.vision.layers, words)
    shapes = jax.eval_shape(PromptedCLIP(sizes, prompted).init, jax.random.key(0))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    prompts = jax.tree.map(lambda x: (0.02 * drawn(*x.shape)).requires_grad_(), shapes)
    optimizer = torch.optim.SGD(jax.tree.leaves(prompts), lr=0.01, momentum=0.9, weight_decay=5e-4)
    texts = normalize(drawn(CLASSES.value, sizes.embed_dim), dim=-1)
    names = imagenet_classnames()[: CLASSES.value]
    twin = Twin(
        clip.to(device, dtype),
        prompted,
        tokenized(names, max(words, prompted.text_length)).to(device),
        texts,
        texts,
        config.loss.alpha,
        guided=config.loss.guidance_epochs > 0,
    )
    images = drawn(BATCH.value, 3, sizes.image_size, sizes.image_size)
    labels = torch.randint(0, CLASSES.value, (BATCH.value,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        twin.loss(prompts, images, labels).backward()
        optimizer.step()

    result = {
        "clip": CLIP.value,
        "classes": CLASSES.value,
        "batch": BATCH.value,
        "method": METHOD.value,
        "dtype": DTYPE.value,
        **timed(step, STEPS.value, BATCH.value, device),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
