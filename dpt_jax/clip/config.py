"""The sizes of a CLIP with a ViT image tower."""

import dataclasses


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

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size
