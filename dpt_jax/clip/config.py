"""The sizes of a CLIP with a ViT image tower, and how its configuration files are read."""

import dataclasses
import json
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from dpt_jax.clip.preprocessing import CLIP_PREPROCESSING, Preprocessing
from dpt_jax.errors import UserError
from dpt_jax.io import reading


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
    """What the configuration files of a model say.

    Attributes:
      config: its sizes.
      end: id of the token at which the text feature is taken; None for the highest id of a text.
    """

    config: CLIPConfig
    end: int | None


def check_sizes(config: CLIPConfig, file: epath.Path) -> None:
    """Raise UserError if the sizes do not fit together."""
    for name, tower in (("image", config.vision), ("text", config.text)):
        if tower.width % tower.heads:
            raise UserError(
                f"{file}: the {name} tower has {tower.heads} heads, which do not divide its width "
                f"of {tower.width}."
            )
    if config.patch_size > config.image_size:
        raise UserError(
            f"{file}: a patch of {config.patch_size} pixels is larger than an image of "
            f"{config.image_size}."
        )


def read_json(file: epath.Path) -> dict[str, Any]:
    """Return the object of a JSON file.  Raise UserError if the file holds anything else."""
    with reading(file, "JSON"):
        value = json.loads(file.read_bytes().decode("utf-8-sig"))
    if not isinstance(value, dict):
        raise UserError(f"{file} holds a {type(value).__name__}, not a JSON object.")
    return value


def section(fields: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """Return the JSON object of a key, {} if it is missing or null."""
    value = fields.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}{key} is {reprlib.repr(value)}, not a JSON object.")
    return value or {}


def values(fields: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values of the keys of `defaults`, each of the type of its default.

    Args:
      fields: a JSON object. Other keys are ignored.
      defaults: the value of a key that is missing. A number has to be above 0.
      where: file and section, for the error.

    Raises:
      UserError: naming the key, for a value of another type or range.
    """
    found = {}
    for key, default in defaults.items():
        value, kind = fields.get(key, default), type(default)
        right = type(value) is kind or (kind is float and type(value) is int)
        if not right or (kind in (int, float) and not 0 < value < 2**31):
            wanted = {
                int: "a whole number above 0",
                float: "a number above 0",
                bool: "true or false",
            }
            raise UserError(
                f"{where}{key} is {reprlib.repr(value)}, not {wanted.get(kind, 'text')}."
            )
        found[key] = value
    return found


def square(value: Any) -> Any:
    """Return the side of a square that is written as a pair; other values as they are."""
    pair = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
    return value[0] if pair else value
