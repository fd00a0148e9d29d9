"""Writes tests/golden/open_clip.npz: features of small random models by open_clip itself.

    python -m tests.golden.make_open_clip_features

Needs torch and open_clip; the tests that read the file need neither, since both
sides draw the weights from the same seed.
"""

import json
import pathlib
import zlib

import numpy as np

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
    config = MODELS[model]
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    width, patch = vision["width"], vision["patch_size"]
    first = "text." if config.get("custom_text") else ""
    found = {
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((SIZE // patch) ** 2 + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
        f"{first}positional_embedding": (CONTEXT, text["width"]),
        f"{first}token_embedding.weight": (VOCAB, text["width"]),
        f"{first}text_projection": (text["width"], embed),
    }
    norms = [("visual.ln_pre", width), ("visual.ln_post", width)]
    norms.append((f"{first}ln_final", text["width"]))
    for part, own, ratio in (("visual.", vision, vision["mlp_ratio"]), (first, text, 4)):
        wide = own["width"]
        hidden = int(wide * ratio)
        for layer in range(own["layers"]):
            block = f"{part}transformer.resblocks.{layer}."
            norms += [(f"{block}ln_{i}", wide) for i in (1, 2)]
            for name, out, into in (
                ("attn.out_proj.", wide, wide),
                ("mlp.c_fc.", hidden, wide),
                ("mlp.c_proj.", wide, hidden),
            ):
                found |= {f"{block}{name}weight": (out, into), f"{block}{name}bias": (out,)}
            found[f"{block}attn.in_proj_weight"] = (3 * wide, wide)
            found[f"{block}attn.in_proj_bias"] = (3 * wide,)
    for name, wide in norms:
        found |= {f"{name}.weight": (wide,), f"{name}.bias": (wide,)}
    return found


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
