"""The sizes of a CLIP with a ViT image tower."""

import dataclasses
import json
from typing import Any

from etils import epath

from dpt_jax.clip.preprocessing import CLIP_PREPROCESSING, Preprocessing
from dpt_jax.io import reading


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one tower.

    Raises:
      ValueError: for a value of the wrong type or range.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP with a ViT image tower (image_size and patch_size in pixels).

    Raises:
      ValueError: for a value of the wrong type or range.
    """

    embed_dim: int
    image_size: int
    patch_size: int
    vision: TransformerConfig
    text: TransformerConfig
    vocab_size: int = 49408
    context_length: int = 77
    preprocessing: Preprocessing = CLIP_PREPROCESSING

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size is {self.patch_size}, image_size {self.image_size}")

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


def _check_numbers(config: Any) -> None:
    """Raise ValueError for a field that should be a number above 0 and is not."""
    kinds = {int: (int,), float: (int, float)}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type in kinds and (type(value) not in kinds[field.type] or not 0 < value < 2**31):
            raise ValueError(f"{field.name} is {value!r}, not a number above 0")


_SMALL, _LARGE = TransformerConfig(768, 12, 12, 3072), TransformerConfig(1024, 24, 16, 4096)
_TEXT = TransformerConfig(512, 12, 8, 2048)
OPENAI_MODELS = {
    "ViT-B/32": CLIPConfig(512, 224, 32, _SMALL, _TEXT),
    "ViT-B/16": CLIPConfig(512, 224, 16, _SMALL, _TEXT),
    "ViT-L/14": CLIPConfig(768, 224, 14, _LARGE, _SMALL),
    "ViT-L/14@336px": CLIPConfig(768, 336, 14, _LARGE, _SMALL),
}


def read_json(file: epath.Path) -> dict[str, Any]:
    """Return the object of a JSON file.  Raise UserError if the file holds anything else."""
    with reading(file, "JSON"):
        value = json.loads(file.read_bytes().decode("utf-8-sig"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value
