"""A test case computed by DPT's published code in float32: logits, loss and gradients."""

import functools
import importlib.resources
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from dpt_jax.check.rows import Row, at_most
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.layouts import OPENAI, params_of, tensors_of
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.packing import pack
from dpt_jax.clip.tokenizer import openai_tokenizer
from dpt_jax.convert.published import prompts_from_published
from dpt_jax.model import PromptedCLIP, Texts
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.config import PromptConfig
from dpt_jax.prompts.text import plain_layout, prompted_texts
from dpt_jax.training.losses import Rows, count, losses

CLIP = CLIPConfig(64, 32, 8, TransformerConfig(128, 4, 2, 512), TransformerConfig(128, 3, 2, 512))
CLASSES = ("airplane", "sea horse", "dollar bill", "grand piano", "water lilly", "yin yang")
PROMPTS = PromptConfig(len(CLASSES), text_length=4, visual_length=3, top_k=3, first_layer=4)
ALPHA = 0.3
# Relative to the largest logit, the loss, and each gradient's norm.
BOUNDS = {
    "float32": {"logits": 1e-4, "loss": 1e-5, "gradient": 1e-3},
    "bfloat16": {"logits": 5e-2, "loss": 5e-2, "gradient": 1e-1},
}


class Found(NamedTuple):
    """Logits (B, C), the loss, and the gradient of the prompts."""

    logits: np.ndarray
    loss: float
    gradient: Prompts


def seeded(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return normals drawn from PCG64(seed) in order of name, scaled by kind."""
    generator = np.random.default_rng(seed)

    def draw(name: str) -> np.ndarray:
        shape = shapes[name]
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

    return {name: draw(name) for name in sorted(shapes)}


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    """Return the arrays of the published code: param/…, grad/…, image, label, logits, loss."""
    file = importlib.resources.files("dpt_jax") / "assets" / "golden_dpt.npz"
    with file.open("rb") as opened:
        return dict(np.load(opened))


def prompts_of(prefix: str) -> Prompts:
    """Return the tree of arrays with a prefix."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for key, value in arrays().items():
        kind, _, name = key.partition("/")
        if kind == prefix:
            module, _, tensor = name.partition("/")
            modules.setdefault(module, {})[tensor] = value
    return prompts_from_published(modules)


@functools.cache
def clip_params() -> Params:
    """Return the weights of the CLIP that the arrays were computed with."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), param_shapes(CLIP))
    shapes = {name: x.shape for name, x in tensors_of(zeros, CLIP, OPENAI).items()}
    return params_of(seeded(shapes, seed=0), CLIP, pathlib.Path("the golden CLIP"))


@functools.cache
def program(dtype: str) -> Callable[..., tuple[Any, Any]]:
    """Return (CLIP's weights, prompts, batch) -> ((loss, logits), gradient of the prompts)."""
    model, tokenizer = PromptedCLIP(CLIP, PROMPTS, jnp.dtype(dtype)), openai_tokenizer()
    packed = pack(prompted_texts(CLASSES, tokenizer, PROMPTS.text_length))
    plain = plain_layout([f"a photo of a {name}." for name in CLASSES], tokenizer)
    encoder = PromptedCLIP(CLIP, PromptConfig(classes=1), jnp.dtype(dtype))

    def loss(
        prompts: Prompts, clip: Params, image: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        variables = {"params": {"clip": clip, "prompts": prompts}}
        frozen: Any = encoder.apply({"params": {"clip": clip}}, plain, method="encode_text")
        texts: Any = model.apply(variables, Texts(packed, frozen), method="texts")
        outputs: Any = model.apply(variables, image, texts)
        of = Rows(labels, jnp.ones(len(labels)))
        counts = count(outputs.zero_shot.indices, of, model.cavpt_layers)
        terms = losses(PROMPTS, ALPHA, guidance=True)
        values = [term(outputs, of, counts, True) for term in terms.values()]
        return jnp.asarray(sum(values)), outputs.logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def compute(
    dtype: str, device: jax.Device, change: Callable[[Params], Params] = lambda params: params
) -> Found:
    """Return the logits, the loss and the gradient that a device computes.

    Args:
      dtype: compute dtype.
      device: the device to compute on.
      change: changes CLIP's weights, for tests.
    """
    images, labels = arrays()["image"].transpose(0, 2, 3, 1), arrays()["label"].astype(np.int32)
    given = prompts_of("param"), change(clip_params()), images, labels
    (loss, logits), gradient = program(dtype)(*jax.device_put(given, device))
    return Found(np.asarray(logits), float(loss), jax.tree.map(np.asarray, gradient))


def rows(found: Found, dtype: str, device: str) -> list[Row]:
    """Return the lines that compare what was found with the published arrays."""
    published, bounds = arrays(), BOUNDS[dtype]
    where = f"{dtype}, {device}"
    logits, loss = published["logits"], float(published["loss"])
    lines = [
        at_most("numbers", f"logits, {where}",
                float(np.abs(found.logits - logits).max() / np.abs(logits).max()),
                bounds["logits"]),
        at_most("numbers", f"loss, {where}", abs(found.loss - loss) / loss, bounds["loss"]),
    ]  # fmt: skip
    gradients, expected = (
        flatten_dict(found.gradient, sep="."),
        flatten_dict(prompts_of("grad"), sep="."),
    )
    for name, value in expected.items():
        error = float(np.linalg.norm(gradients[name] - value) / np.linalg.norm(value))
        lines.append(at_most("numbers", f"gradient {name}, {where}", error, bounds["gradient"]))
    return lines
