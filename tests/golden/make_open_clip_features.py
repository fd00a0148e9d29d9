"""Writes tests/golden/open_clip.npz: features of small random models by open_clip itself.

    python -m tests.golden.make_open_clip_features

Needs torch and open_clip. Tests need neither: both sides draw the weights from the same seed.
"""

import json
import pathlib
import zlib

import numpy as np

from dpt_jax.check import seeded
from dpt_jax.clip.config import CLIPConfig, TransformerConfig

FILE = pathlib.Path(__file__).parent / "open_clip.npz"
VOCAB, CONTEXT, SIZE = 4514, 77, 32
TEXTS = ((4512, 320, 3610, 539, 320, 2368, 4513), (4512, 7, 4513), (4512, 99, 5, 1001, 4513))


def model_config(head_width=64, **more):
    """The model_cfg of a small CLIP."""
    width = 2 * head_width
    vision = {"image_size": SIZE, "layers": 3, "width": width, "patch_size": 8}
    text = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 64, "heads": 4, "layers": 2}
    return {
        "embed_dim": 48,
        "vision_cfg": {**vision, "head_width": head_width, "mlp_ratio": 2.5},
        "text_cfg": text,
        **more,
    }


MODELS = {
    "quick_gelu": model_config(quick_gelu=True),
    "gelu_heads_of_80": model_config(head_width=80),
    "custom_text": model_config(head_width=32, custom_text=True),
}


def shapes(model):
    """{name: shape} of the tensors of one of MODELS, as open_clip names them."""
    width = MODELS[model]["vision_cfg"]["width"]
    vision = TransformerConfig(width, 3, 2, int(2.5 * width))
    config = CLIPConfig(48, SIZE, 8, vision, TransformerConfig(64, 2, 4, 256), VOCAB, CONTEXT)
    first = "text." if "custom_text" in MODELS[model] else ""
    return {
        name if name.startswith(("visual.", "logit_scale")) else f"{first}{name}": x.shape
        for name, x in seeded(config, 0).items()
    }


def weights(model):
    """The seeded tensors of one of MODELS, large enough that the activation matters."""
    made = {}
    for name, shape in shapes(model).items():
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        if "ln_" in name and name.endswith("weight"):
            x = 1 + 0.1 * x
        elif len(shape) > 1:
            x = x * (2 if "resblocks" in name else 1) * shape[-1] ** -0.5
        made[name] = np.asarray(x, np.float32)
    return made


def images():
    """Two normalized images (2, SIZE, SIZE, 3)."""
    return np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3), np.float32)


def main():
    import open_clip
    import torch
    from open_clip.model import CLIP, CustomTextCLIP

    tokens = np.zeros((len(TEXTS), CONTEXT), np.int64)
    for row, text in zip(tokens, TEXTS, strict=True):
        row[: len(text)] = text
    arrays = {}
    for name, config in MODELS.items():
        config = dict(config)
        kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
        model = kind(**config).eval()
        model.load_state_dict({k: torch.tensor(v) for k, v in weights(name).items()})
        with torch.no_grad():
            pixels = torch.tensor(images().transpose(0, 3, 1, 2).copy())
            arrays[f"{name}.image"] = model.encode_image(pixels).numpy()
            arrays[f"{name}.text"] = model.encode_text(torch.tensor(tokens)).numpy()
    meta = {"open_clip": open_clip.__version__, "torch": torch.__version__}
    np.savez(FILE, meta=json.dumps(meta), **arrays)
    print({name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
