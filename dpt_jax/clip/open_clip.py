"""open_clip_config.json, open_clip's own description of a model, as our sizes."""

from etils import epath

from dpt_jax.clip.config import CLIPConfig, Description, TransformerConfig, check_sizes
from dpt_jax.clip.json_files import Section, read_json
from dpt_jax.clip.processors import from_open_clip
from dpt_jax.errors import UserError

CONFIG_FILE = "open_clip_config.json"
# Keys that change nothing in a finished model of the kind that is read here.
_NEUTRAL = {
    "model_cfg": {"custom_text", "init_logit_scale", "cast_dtype", "output_dict"},
    "vision_cfg": {
        *("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"),
        *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_drop", "timm_drop_path"),
    },
    "text_cfg": {
        *("pad_id", "output_tokens", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    },
}
# Keys that may be there with the value of a plain tower alone.
_PLAIN = {
    "pool_type": ("tok", "argmax", "eos"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": ("default",),
    "tokenizer_mode": ("clip",),
}


def read_description(file: epath.Path) -> Description:
    """Return what an open_clip_config.json says.

    Keys that are missing are as in open_clip. Raise UserError for a model of
    another kind, named by the key that makes it one, and for a value that cannot be.
    """
    raw = read_json(file)
    if not raw.has("model_cfg"):
        raise raw.error("model_cfg", "an object")
    model = raw.section("model_cfg")
    # A model that is built from a Hugging Face or timm one says so; nothing else need be there.
    vision, text = model.section("vision_cfg"), model.section("text_cfg")
    _refuse_other_towers(vision, text)
    activation = "quick_gelu" if model.flag("quick_gelu") else "gelu"
    config = CLIPConfig(
        embed_dim=model.whole("embed_dim"),
        image_size=(image_size := vision.side("image_size", 224)),
        patch_size=vision.side("patch_size", 16),
        vision=_vision_tower(vision, activation),
        text=_text_tower(text, activation),
        vocab_size=text.whole("vocab_size", 49408),
        context_length=text.whole("context_length", 77),
        preprocessing=from_open_clip(raw.section("preprocess_cfg"), image_size),
    )
    end = text.whole("eos_id", 2, least=0)
    by_end = text.get("pool_type") == "eos"
    for part, name in ((model, "model_cfg"), (vision, "vision_cfg"), (text, "text_cfg")):
        _refuse_unknown(part, name)
    check_sizes(config, file)
    return Description(config, end if by_end else None)


def _vision_tower(fields: Section, activation: str) -> TransformerConfig:
    width, head = fields.whole("width", 768), fields.whole("head_width", 64)
    if width % head:
        raise fields.error("head_width", f"a divisor of the width of {width}")
    return _tower(fields, width, width // head, activation)


def _text_tower(fields: Section, activation: str) -> TransformerConfig:
    width = fields.whole("width", 512)
    return _tower(fields, width, fields.whole("heads", 8), activation)


def _tower(fields: Section, width: int, heads: int, activation: str) -> TransformerConfig:
    norm = fields.section("norm_kwargs")
    eps = norm.number("eps", 1e-5)
    if left := norm.left():
        raise UserError(f"{fields.file}: {norm.name}{min(left)} is not supported.")
    return TransformerConfig(
        width=width,
        layers=fields.whole("layers", 12),
        heads=heads,
        mlp_width=int(width * fields.number("mlp_ratio", 4.0)),
        activation=activation,
        layer_norm_eps=eps,
    )


def _refuse_other_towers(vision: Section, text: Section) -> None:
    """Raise UserError that names the kind of a tower that is no plain transformer."""
    for fields, key, kind in (
        (vision, "timm_model_name", "an image tower of timm"),
        (vision, "eva_model_name", "an EVA image tower"),
        (text, "hf_model_name", "a text tower of transformers"),
        (text, "hf_tokenizer_name", "a tokenizer of transformers"),
    ):
        if name := fields.get(key):
            raise UserError(
                f"{fields.file}: {fields.name}{key} is {name!r}: a CLIP with {kind} is not "
                "supported."
            )
    if isinstance(vision.get("layers"), list):
        raise UserError(
            f"{vision.file} describes a CLIP with a ResNet image tower; only ViT image towers take "
            "prompts."
        )


def _refuse_unknown(fields: Section, name: str) -> None:
    """Raise UserError for a key that makes the model another one than is computed here."""
    for key, value in fields.values.items():
        if key in _PLAIN and value and value not in _PLAIN[key]:
            raise fields.error(key, f"{' or '.join(_PLAIN[key])}")
    pooled = fields.get("pool_type")
    if pooled and (pooled == "tok") != (name == "vision_cfg"):
        raise fields.error("pool_type", "tok" if name == "vision_cfg" else "argmax or eos")
    for key, value in fields.left().items():
        # Absent, null, false, 0 and empty are how open_clip leaves a part out.
        if key not in _NEUTRAL[name] and key not in _PLAIN and value:
            raise UserError(
                f"{fields.file}: {fields.name}{key} is {value!r}; a CLIP with it is not supported."
            )
