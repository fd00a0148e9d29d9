"""A test case computed by DPT's published code in float32: logits, loss and gradients."""

import functools
import importlib.resources
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.files import OPENAI, params_of, tensors_of
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.packing import pack
from dpt_jax.clip.tokenizer import openai_tokenizer
from dpt_jax.convert.reference import prompts_from_published
from dpt_jax.data.loader import Batch
from dpt_jax.distributed import AXIS, replicate, to_host
from dpt_jax.model import PromptedCLIP, Texts, apply
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.config import PromptConfig
from dpt_jax.prompts.text import plain_layout, prompted_texts
from dpt_jax.training.step import StepConfig, accumulate_gradients

CLIP = CLIPConfig(64, 32, 8, TransformerConfig(128, 4, 2, 512), TransformerConfig(128, 3, 2, 512))
CLASSES = ("airplane", "sea horse", "dollar bill", "grand piano", "water lilly", "yin yang")
PROMPTS = PromptConfig(len(CLASSES), text_length=4, visual_length=3, top_k=3, first_layer=4)
ALPHA = 0.3
# Relative to the largest logit, the loss, and each gradient's norm.
BOUNDS = {
    "float32": {"logits": 1e-4, "loss": 1e-5, "gradient": 1e-3},
    "bfloat16": {"logits": 5e-2, "loss": 5e-2, "gradient": 1e-1},
}


def openai_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a CLIP by OpenAI's names."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), param_shapes(config))
    return {name: x.shape for name, x in tensors_of(zeros, config, OPENAI).items()}


def seeded(config: CLIPConfig, seed: int) -> dict[str, np.ndarray]:
    """Return OpenAI's tensors drawn from PCG64(seed) in order of name, scaled by kind."""
    generator = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        x = generator.standard_normal(shape, np.float32)
        if name == "logit_scale":
            x = np.float32(math.log(100.0)) + 0 * x
        elif "ln_" in name and name.endswith("weight"):
            x = 1 + 0.1 * x
        elif name.endswith("bias"):
            x = 0.05 * x
        elif name == "token_embedding.weight":
            x = 0.3 * x
        elif name.endswith("_embedding"):
            x = 0.2 * x
        elif name == "visual.conv1.weight":
            x = x * math.prod(shape[1:]) ** -0.5
        else:
            x = x * shape[0 if name in ("text_projection", "visual.proj") else -1] ** -0.5
        return np.asarray(x, np.float32)

    return {name: draw(name, shape) for name, shape in sorted(openai_shapes(config).items())}


@functools.cache
def arrays() -> dict[str, Any]:
    """Return the published arrays: param and grad by module; image, label, logits and loss."""
    file = importlib.resources.files("dpt_jax") / "assets" / "golden_dpt.npz"
    with file.open("rb") as opened:
        return unflatten_dict(dict(np.load(opened)), sep="/")


@functools.cache
def clip_params() -> Params:
    """Return the weights of the CLIP that the arrays were computed with."""
    return params_of(seeded(CLIP, seed=0), CLIP, pathlib.Path("the golden CLIP"))


def errors(dtype: str) -> dict[str, float]:
    """Return the relative errors of logits, loss and gradients, if each device has all images."""
    golden, tokenizer = arrays(), openai_tokenizer()
    model = PromptedCLIP(CLIP, PROMPTS, jnp.dtype(dtype))
    encoder = PromptedCLIP(CLIP, PromptConfig(classes=1), jnp.dtype(dtype))
    packed = pack(prompted_texts(CLASSES, tokenizer, PROMPTS.text_length))
    plain = plain_layout([f"a photo of a {name}." for name in CLASSES], tokenizer)

    def step(clip: Params, prompts: Prompts, batch: Batch) -> Any:
        texts = Texts(packed, apply(encoder, clip, {}, plain, method="encode_text"))
        encoded = apply(model, clip, prompts, texts, method="texts")
        logits = apply(model, clip, prompts, batch["image"], encoded).logits
        sums = accumulate_gradients(
            model, StepConfig(ALPHA), prompts, clip, texts, batch, guided=True
        )
        return logits, *jax.lax.psum(sums, AXIS)

    labels = golden["label"].astype(np.int32)
    images = golden["image"].transpose(0, 2, 3, 1)
    batch = {"image": images, "label": labels, "weight": np.ones(len(labels), np.float32)}
    given = replicate((clip_params(), prompts_from_published(golden["param"]), batch))
    logits, *sums = jax.pmap(step, axis_name=AXIS)(*given)
    logits = np.asarray(logits)  # of each device
    gradient, totals = to_host(sums)
    loss = sum(x for name, x in totals.items() if name.startswith("loss_"))
    loss /= len(labels) * jax.device_count()
    gradients = flatten_dict(gradient, sep=".")
    expected = flatten_dict(prompts_from_published(golden["grad"]), sep=".")
    return {
        "logits": np.abs(logits - golden["logits"]).max() / np.abs(golden["logits"]).max(),
        "loss": abs(loss - golden["loss"]) / golden["loss"],
        **{
            f"gradient {name}": np.linalg.norm(gradients[name] - x) / np.linalg.norm(x)
            for name, x in expected.items()
        },
    }
