"""Writes a small CLIP with seeded random weights as a Hugging Face directory, without a vocabulary:
then it is that of OpenAI's models.

The weights are those that the golden arrays in tests/golden/ were computed with: each array's
`meta` names the sizes and the seed (`wseed`).
"""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

from dpt_jax.check.golden import seeded
from dpt_jax.clip.config_files import processor_to_dict
from dpt_jax.clip.preprocessing import CLIP_PREPROCESSING

VOCAB_SIZE, CONTEXT = 49408, 77
# Of a CLIP of three and two narrow layers.
TINY = {"embed": 32, "res": 16, "vl": 3, "vw": 128, "patch": 8, "tw": 64, "th": 1, "tl": 2}


def openai_shapes(embed, res, vl, vw, patch, tw, tl):
    """Shapes of every weight, under the names of OpenAI's CLIP state dict."""
    s = {
        "logit_scale": (),
        "positional_embedding": (CONTEXT, tw),
        "text_projection": (tw, embed),
        "token_embedding.weight": (VOCAB_SIZE, tw),
        "ln_final.weight": (tw,),
        "ln_final.bias": (tw,),
        "visual.class_embedding": (vw,),
        "visual.positional_embedding": ((res // patch) ** 2 + 1, vw),
        "visual.proj": (vw, embed),
        "visual.conv1.weight": (vw, 3, patch, patch),
    }
    for n in ("ln_pre", "ln_post"):
        s[f"visual.{n}.weight"] = s[f"visual.{n}.bias"] = (vw,)
    for prefix, layers, w in (("transformer", tl, tw), ("visual.transformer", vl, vw)):
        for i in range(layers):
            b = f"{prefix}.resblocks.{i}."
            s.update(
                {
                    b + "attn.in_proj_weight": (3 * w, w),
                    b + "attn.in_proj_bias": (3 * w,),
                    b + "attn.out_proj.weight": (w, w),
                    b + "attn.out_proj.bias": (w,),
                    b + "mlp.c_fc.weight": (4 * w, w),
                    b + "mlp.c_fc.bias": (4 * w,),
                    b + "mlp.c_proj.weight": (w, 4 * w),
                    b + "mlp.c_proj.bias": (w,),
                }
            )
            for n in ("ln_1", "ln_2"):
                s[b + n + ".weight"] = s[b + n + ".bias"] = (w,)
    return s


def to_huggingface(w):
    """The same weights under the names of transformers' CLIPModel."""
    o = {}
    for src, dst in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        layers = {
            int(k.split(".resblocks.")[1].split(".")[0])
            for k in w
            if k.startswith(src + ".resblocks.")
        }
        for i in layers:
            s, t = f"{src}.resblocks.{i}.", f"{dst}.encoder.layers.{i}."
            for kind in ("weight", "bias"):
                for name, part in zip(
                    "qkv", np.split(w[s + f"attn.in_proj_{kind}"], 3), strict=True
                ):
                    o[t + f"self_attn.{name}_proj.{kind}"] = part
                for a, b in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    o[t + f"{b}.{kind}"] = w[s + f"{a}.{kind}"]
    for kind in ("weight", "bias"):
        o[f"vision_model.pre_layrnorm.{kind}"] = w[f"visual.ln_pre.{kind}"]
        o[f"vision_model.post_layernorm.{kind}"] = w[f"visual.ln_post.{kind}"]
        o[f"text_model.final_layer_norm.{kind}"] = w[f"ln_final.{kind}"]
    o["vision_model.embeddings.class_embedding"] = w["visual.class_embedding"]
    o["vision_model.embeddings.patch_embedding.weight"] = w["visual.conv1.weight"]
    o["vision_model.embeddings.position_embedding.weight"] = w["visual.positional_embedding"]
    o["text_model.embeddings.token_embedding.weight"] = w["token_embedding.weight"]
    o["text_model.embeddings.position_embedding.weight"] = w["positional_embedding"]
    o["visual_projection.weight"], o["text_projection.weight"] = (
        w["visual.proj"].T,
        w["text_projection"].T,
    )
    o["logit_scale"] = w["logit_scale"]
    return {k: np.array(v, order="C") for k, v in o.items()}


def config(embed, res, vl, vw, patch, tw, th, tl):
    common = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": embed}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": embed,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": tw,
            "intermediate_size": 4 * tw,
            "num_attention_heads": th,
            "num_hidden_layers": tl,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
            **common,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": vw,
            "intermediate_size": 4 * vw,
            "num_attention_heads": vw // 64,
            "num_hidden_layers": vl,
            "image_size": res,
            "patch_size": patch,
            **common,
        },
    }


def write(out, seed=0, embed=64, res=32, vl=4, vw=128, patch=8, tw=128, th=2, tl=3):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        to_huggingface(seeded(openai_shapes(embed, res, vl, vw, patch, tw, tl), seed)),
        out / "model.safetensors",
    )
    (out / "config.json").write_text(
        json.dumps(config(embed, res, vl, vw, patch, tw, th, tl), indent=2)
    )
    processor = processor_to_dict(CLIP_PREPROCESSING, res)
    (out / "preprocessor_config.json").write_text(json.dumps(processor))
