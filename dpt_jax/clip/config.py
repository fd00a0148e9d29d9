"""The sizes of a CLIP with a ViT image tower, and what it wants done to images."""

import dataclasses
from typing import NamedTuple

from etils import epath

from dpt_jax.clip.preprocessing import CLIP_PREPROCESSING, Preprocessing
from dpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one tower."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP with a ViT image tower (image_size and patch_size in pixels)."""

    embed_dim: int
    image_size: int
    patch_size: int
    vision: TransformerConfig
    text: TransformerConfig
    vocab_size: int = 49408
    context_length: int = 77
    preprocessing: Preprocessing = CLIP_PREPROCESSING

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


class Description(NamedTuple):
    """What a model's own files say of it.

    end: the id of the token at which the text's feature is taken, None for the
    highest of the text.
    """

    config: CLIPConfig
    end: int | None


def check_sizes(config: CLIPConfig, file: epath.Path) -> None:
    """Raise UserError where the sizes do not go together."""
    for name, tower in (("image", config.vision), ("text", config.text)):
        if tower.width % tower.heads:
            raise UserError(
                f"{file}: the {name} tower has {tower.heads} heads, which do not divide its width "
                f"of {tower.width}."
            )
    if config.patch_size > config.image_size:
        raise UserError(
            f"{file}: a patch of {config.patch_size} pixels does not fit into an image of "
            f"{config.image_size}."
        )
