"""Small CLIPs with seeded random weights, as transformers folders that use OpenAI's vocabulary.

Golden arrays in tests/golden/ were computed with such weights: each array's `meta` names the sizes
and the seed (`wseed`).
"""

import json
import pathlib

import numpy as np

from dpt_jax.check import seeded
from dpt_jax.clip import config as clip_config
from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.files import params_of, tensors_of, write_safetensors

# Of most golden arrays, and of a CLIP of three and two narrow layers.
GOLDEN = {"embed": 64, "res": 32, "vl": 4, "vw": 128, "patch": 8, "tw": 128, "th": 2, "tl": 3}
TINY = {"embed": 32, "res": 16, "vl": 3, "vw": 128, "patch": 8, "tw": 64, "th": 1, "tl": 2}


def config_of(embed, res, vl, vw, patch, tw, th, tl) -> CLIPConfig:
    vision = TransformerConfig(vw, vl, vw // 64, 4 * vw)
    return CLIPConfig(embed, res, patch, vision, TransformerConfig(tw, tl, th, 4 * tw))


def openai(seed: int, **sizes: int) -> dict[str, np.ndarray]:
    return seeded(config_of(**sizes), seed)


def write(out: str | pathlib.Path, seed: int = 0, **sizes: int) -> None:
    folder, sizes = pathlib.Path(out), sizes or GOLDEN
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(**sizes)
    params = params_of(openai(seed, **sizes), config, folder)
    write_safetensors(folder / "model.safetensors", tensors_of(params, config))
    processor = clip_config.processor_to_dict(config.preprocessing, config.image_size)
    (folder / clip_config.PROCESSOR_FILES[0]).write_text(json.dumps(processor))
    (folder / clip_config.CONFIG_FILE).write_text(json.dumps(clip_config.config_to_dict(config)))
