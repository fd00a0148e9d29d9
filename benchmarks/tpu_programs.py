"""The programs that main.py runs, lowered from shapes for devices that need not be here."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.chips import Chip
from benchmarks.random_clip import SIZES, clip_shapes, openai_tokenizer
from dpt_jax.clip.packing import PackedTexts, pack, plain_texts
from dpt_jax.config import method_config, prompt_config, templates
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.evaluation.evaluate import make_programs
from dpt_jax.model import PromptedCLIP, Texts, init_prompts
from dpt_jax.prompts.text import context_tokens, prompted_texts
from dpt_jax.training.optimizer import make_optimizer
from dpt_jax.training.schedule import Schedule
from dpt_jax.training.setup import Frozen
from dpt_jax.training.step import StepConfig, make_step, new_state


class Case(NamedTuple):
    """What is compiled.  Arrays are shapes with a leading axis of `chips`."""

    model: PromptedCLIP
    layout: PackedTexts
    frozen: Frozen
    images: int  # of a chip
    chips: int
    train: bool
    step: StepConfig


def make_case(options: argparse.Namespace, chip: Chip, chips: int) -> Case:
    """Return the case that the flags of compile_for_tpu.py name."""
    config = method_config(options.method, "imagenet")
    sizes, tokenizer = SIZES[options.clip], openai_tokenizer()
    names = imagenet_classnames()[: options.classes]
    prompts = prompt_config(config, len(names), sizes.vision.layers)
    if not config.text_prompt.fixed_words:
        config.text_prompt.init = ""
    if prompts.text_length:
        words = context_tokens(config.text_prompt.init, tokenizer)
        fixed = words[prompts.text_length :]
        layout = pack(prompted_texts(names, tokenizer, prompts.text_length, fixed=fixed))
    else:
        template = templates(config)[0]
        layout = pack(plain_texts([template.format(name) for name in names], tokenizer, 77))
    dtype = jnp.dtype(options.dtype)
    model = PromptedCLIP(sizes, prompts, dtype, options.remat)
    texts: Any = jax.ShapeDtypeStruct((len(names), sizes.embed_dim), jnp.float32)
    held = texts if prompts.has_consistency and options.mode == "train" else None
    frozen = Frozen(clip_shapes(options.clip, dtype), layout, texts, held)
    step = StepConfig(config.loss.alpha, guidance=config.loss.guidance_epochs > 0)
    train = options.mode == "train"
    return Case(model, layout, stacked(frozen, chips), options.batch, chips, train, step)


def programs(case: Case, on: Sequence[jax.Device]) -> list[tuple[str, Any]]:
    """Return (name, lowered program): the training step, or the two of an evaluation."""
    prompts = jax.eval_shape(functools.partial(init_prompts, case.model), jax.random.key(0))
    side = case.model.clip_config.image_size
    images = jax.ShapeDtypeStruct((case.images, side, side, 3), np.uint8)
    if not case.train:
        classifier = make_programs(case.model, tuple(on))
        given = (case.frozen, stacked(prompts, case.chips))
        texts: Texts = jax.eval_shape(classifier.encode_texts, *given)
        classify: Any = classifier.classify
        encode: Any = classifier.encode_texts
        lowered = classify.lower(*given, texts, stacked(images, case.chips))
        return [("classify", lowered), ("texts", encode.lower(*given))]
    batch = {
        "image": images,
        "label": jax.ShapeDtypeStruct((case.images,), np.int32),
        "weight": jax.ShapeDtypeStruct((case.images,), np.float32),
    }
    optimizer = make_optimizer()
    state = jax.eval_shape(lambda p: new_state(case.model, case.step, p, optimizer), prompts)
    step: Any = make_step(case.model, optimizer, case.step, tuple(on))
    schedule = Schedule(0.01, 0.002, 1, 2, 1, 30).as_arrays()
    arguments = (
        *(stacked(state, case.chips), case.frozen, stacked(batch, case.chips)),
        stacked(schedule, case.chips),
    )
    return [("step", step.lower(*arguments))]


def stacked(tree: Any, chips: int) -> Any:
    """Return the shapes of a tree with a leading axis of one copy a chip."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((chips, *x.shape), x.dtype), tree)
