"""OpenAI's own archives, which do not say their heads and activation: known by their sizes."""

from etils import epath

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.files import Tensors
from dpt_jax.errors import UserError

_SMALL, _LARGE = TransformerConfig(768, 12, 12, 3072), TransformerConfig(1024, 24, 16, 4096)
_TEXT, _WIDE_TEXT = TransformerConfig(512, 12, 8, 2048), _SMALL
MODELS = {
    "ViT-B/32": CLIPConfig(512, 224, 32, _SMALL, _TEXT),
    "ViT-B/16": CLIPConfig(512, 224, 16, _SMALL, _TEXT),
    "ViT-L/14": CLIPConfig(768, 224, 14, _LARGE, _WIDE_TEXT),
    "ViT-L/14@336px": CLIPConfig(768, 336, 14, _LARGE, _WIDE_TEXT),
}
HUB_IDS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


def recognise(tensors: Tensors, file: epath.Path) -> CLIPConfig:
    """Return the sizes of one of OpenAI's models from a few of its shapes (transformers' names).

    Raise UserError where they are none of OpenAI's.
    """
    for config in MODELS.values():
        width, patch = config.vision.width, config.patch_size
        shapes = {
            "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
            "vision_model.embeddings.position_embedding.weight": (config.grid**2 + 1, width),
            "text_model.embeddings.token_embedding.weight": (config.vocab_size, config.text.width),
        }
        if all(n in tensors and tensors[n].shape == shape for n, shape in shapes.items()):
            return config
    raise UserError(
        f"{file} is an archive as OpenAI's, but of none of its models ({', '.join(MODELS)}): put "
        "the open_clip_config.json of its model beside it."
    )
