"""The benchmarks: what they count, and that they run as their page says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from benchmarks import on_gpu
from benchmarks.random_clip import SIZES
from dpt_jax.clip.model import normalize, param_shapes
from dpt_jax.clip.tokenizer import load_tokenizer
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.model import PromptedCLIP, Texts
from dpt_jax.prompts.config import LORA, PromptConfig, Weights
from dpt_jax.training import flops
from tests.helpers.commands import command
from tests.helpers.models import apply, packed_prompts, prompt_shapes, total_loss


def products(jaxpr) -> float:
    """The operations of all matrix products in a program, those in loops as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += (
                2.0
                * np.prod([left[i] for i in contracted])
                * np.prod(equation.outvars[0].aval.shape)
            )
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                total += times * products(inner)
    return total


DPT = {"text_length": 16, "visual_length": 10, "top_k": 10, "first_layer": 12}
COCOOP = {"text_length": 4, "conditioned": True}
IVLP = {"text_length": 2, "visual_length": 2, "text_depth": 9, "visual_depth": 9, "ln_pre": True}


@pytest.mark.parametrize(
    ("classes", "images", "parts", "task"),
    [
        (10, 8, DPT, "guided"),
        (300, 2, DPT, "guided"),
        (10, 8, DPT, "evaluation"),
        (10, 4, COCOOP, "not guided"),
        (10, 8, {**IVLP, "coupled": True}, "guided"),
        (10, 8, {"weights": Weights(LORA, 2, 1.0, "qkv", 0.25, (1, 0), (1, 0))}, "not guided"),
    ],
)
def test_what_a_step_needs_is_nearly_what_it_computes(classes, images, parts, task, tmp_path):
    """The count against the program's products: padding, masked pairs, recomputing add a little.

    Without guidance there is no plain pass but where a loss or a context needs one.
    """
    sizes, guided = SIZES["vit-b-32"], task == "guided"
    model = PromptedCLIP(sizes, PromptConfig(classes, **parts))
    names, length = imagenet_classnames()[:classes], model.config.text_length
    packed = packed_prompts(names, load_tokenizer(tmp_path), length)
    prompts, clip = prompt_shapes(model), param_shapes(sizes)
    frozen = jax.ShapeDtypeStruct((classes, 512), jnp.float32)
    pixels = jax.ShapeDtypeStruct((images, 224, 224, 3), jnp.float32)

    def total(prompts, clip, frozen, pixels):
        texts = apply(model, clip, prompts, packed, frozen, method="texts")
        outputs = apply(model, clip, prompts, pixels, texts)
        labels = jnp.zeros(images, int)
        return total_loss(model, outputs, labels, None, jnp.array(True), 1, guidance=guided)

    def evaluate(prompts, clip, learned, pixels):
        packed_texts = packed if model.config.conditioned else None
        texts = Texts(normalize(learned), learned, None, packed_texts)
        outputs = apply(model, clip, prompts, pixels, texts)
        return outputs.logits, outputs.zero_shot.logits

    evaluates = task == "evaluation"
    function = evaluate if evaluates else jax.grad(total)
    program = jax.make_jaxpr(function)(prompts, clip, frozen, pixels)
    used, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    computed = products(used)
    if evaluates:
        needed = flops.evaluation(model, packed, images)
    else:
        needed = flops.step(model, packed, images, guided)
    assert needed <= computed < 1.1 * needed


@pytest.mark.process
@pytest.mark.slow
def test_the_measurement_on_a_gpu(tmp_path):
    """Its small mode on a CPU, where each command ends well and leaves its output."""
    command("benchmarks/on_gpu.py", f"--out={tmp_path}", "--small")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["name"]: line["code"] for line in lines} == dict.fromkeys(
        dict(on_gpu.commands(small=True)), 0
    )
    assert all((tmp_path / f"{line['name']}.txt").stat().st_size for line in lines)
