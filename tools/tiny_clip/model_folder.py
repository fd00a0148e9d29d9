"""The files of the result: a model directory as the Hugging Face hub has them."""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.layouts import to_transformers
from dpt_jax.clip.preprocessing import MEAN, STD
from dpt_jax.clip.tokenizer import END, START, openai_vocabulary
from dpt_jax.clip.transformers_config import config_to_dict
from tools.tiny_clip.corpus import TEMPLATES
from tools.tiny_clip.training import Params, Recipe

MERGES = 4000  # of CLIP's byte-pair encoding


def write_model(target: pathlib.Path, params: Params, config: CLIPConfig, card: str) -> None:
    """Write the directory but for the vocabulary; transformers' CLIPModel loads it.

    Weights are float16, except the temperature.
    """
    tensors = {
        name: tensor.astype(np.float16) for name, tensor in to_transformers(params, config).items()
    }
    # exp() of a rounded logarithm is off by percents.
    tensors["logit_scale"] = np.asarray(params["logit_scale"], np.float32)
    (target / "model.safetensors").write_bytes(
        safetensors.numpy.save(tensors, metadata={"format": "pt"})
    )
    tokenization = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": config.context_length,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    contents = {
        "config.json": config_to_dict(config),
        "preprocessor_config.json": preprocessing(config.image_size),
        "tokenizer_config.json": tokenization,
    }
    for name, content in contents.items():
        (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (target / "README.md").write_text(card, encoding="utf-8")


def write_vocabulary(target: pathlib.Path, merge_count: int = MERGES) -> int:
    """Write CLIP's vocabulary, cut off after some merges.  Return its size."""
    ids, merges = openai_vocabulary(merge_count)
    lines = "\n".join(["#version: 0.2", *merges, ""])
    (target / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (target / "merges.txt").write_text(lines, encoding="utf-8")
    return len(ids)


def preprocessing(size: int) -> dict[str, Any]:
    """Return the preprocessor_config.json of CLIP for images of this size."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def model_card(config: CLIPConfig, drawings: int, recipe: Recipe, epoch: int, loss: float) -> str:
    """Return the README.md of the directory, as it is after `epoch` epochs with this mean loss."""
    size, patch = config.image_size, config.patch_size
    return f"""\
---
license: apache-2.0
library_name: transformers
tags: [clip, zero-shot-image-classification]
---
# Tiny CLIP of emoji

A CLIP of two small transformers: images of {size} x {size} pixels in patches of {patch}; \
{config.vision.layers} layers for
images and {config.text.layers} for text, each {config.text.width} wide. It is for demonstrations \
and tests of prompt tuning, on a machine
without network or accelerator.

## How it was made
`tools/pretrain_tiny_clip.py` trained it from random weights: epoch {epoch} of {recipe.epochs}, \
batch size {recipe.batch_size},
learning rate {recipe.learning_rate:g}, seed {recipe.seed}. The mean contrastive loss of that \
epoch is {loss:.3f}. The data are the {drawings} Noto
emoji of the npm package emoji-datasource-google that Twemoji has too, as 64-pixel PNG files.
Captions are made from their names, or from their subcategories in plain words, such as
"{TEMPLATES[0].format("mammal")}" It saw no Twemoji drawing.

The vocabulary is CLIP's byte-pair encoding cut off after {MERGES} merges. Weights are float16.

## What it is for
It tells drawings of things apart in a style that it was not trained on. It stands in for a real
CLIP, which is three orders of magnitude larger. It knows nothing of photographs, of people or of
words beyond emoji names, and its accuracy says nothing about CLIP's. Use it to try out software,
and for nothing else.

## Licence
Apache-2.0, as the Noto emoji images (Copyright Google LLC). The names and subcategories are from
emoji-data (MIT, Copyright Cal Henderson).
"""
