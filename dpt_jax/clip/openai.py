"""OpenAI's own models, whose archives do not say heads and activation: recognised by shapes."""

from etils import epath

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.files import Tensors
from dpt_jax.errors import UserError

_SMALL, _LARGE = TransformerConfig(768, 12, 12, 3072), TransformerConfig(1024, 24, 16, 4096)
_TEXT = TransformerConfig(512, 12, 8, 2048)
MODELS = {
    "ViT-B/32": CLIPConfig(512, 224, 32, _SMALL, _TEXT),
    "ViT-B/16": CLIPConfig(512, 224, 16, _SMALL, _TEXT),
    "ViT-L/14": CLIPConfig(768, 224, 14, _LARGE, _SMALL),
    "ViT-L/14@336px": CLIPConfig(768, 336, 14, _LARGE, _SMALL),
}
HUB_IDS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


def is_openai(tensors: Tensors) -> bool:
    """Return whether a file is one of OpenAI's archives, which store three sizes as tensors."""
    return {"input_resolution", "context_length", "vocab_size"} <= tensors.keys()


def recognise(tensors: Tensors, file: epath.Path) -> CLIPConfig:
    """Return the sizes of one of OpenAI's models.  Raise UserError if it is none of them."""
    for config in MODELS.values():
        width, patch = config.vision.width, config.patch_size
        shapes = {
            "visual.conv1.weight": (width, 3, patch, patch),
            "visual.positional_embedding": (config.grid**2 + 1, width),
            "token_embedding.weight": (config.vocab_size, config.text.width),
        }
        if all(n in tensors and tensors[n].shape == shape for n, shape in shapes.items()):
            return config
    raise UserError(
        f"{file} is an archive like OpenAI's, but of none of its models ({', '.join(MODELS)}): put "
        "the open_clip_config.json of its model beside it."
    )
