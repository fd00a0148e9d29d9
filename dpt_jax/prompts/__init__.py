"""The learned parts, a module for each kind; here their sizes, and the layers that they share."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dpt_jax.clip.blocks import Params

# The learned parameters by part: {"text": …, "visual" or "coupling": …, "meta_net": …,
# "cavpt": …, "weights": …, "classifier": …}, as far as the method has them.
Prompts = Params

COSINE, L1 = "cosine", "l1"
LORA, NORMS, ALL_NORMS = "lora", "norms", "all_norms"
# The first and the last layer, from 1, with 0 for the tower's last; None for no layer.
Layers = tuple[int, int] | None


class Consistency(NamedTuple):
    """The weights of the consistency losses against frozen CLIP; 0 leaves a loss out."""

    text: float = 0.0
    text_distance: str = COSINE  # or L1
    image: float = 0.0
    logits: float = 0.0


class Weights(NamedTuple):
    """The weights of CLIP that are learned."""

    kind: str = ""  # LORA, changes of low rank; NORMS, the layer norms of blocks; ALL_NORMS; or ""
    rank: int = 0  # r of LORA
    alpha: float = 0.0  # α of LORA, which scales the changes by α/√r
    matrices: str = ""  # of LORA, some of q, k, v and o
    dropout: float = 0.0  # of LORA, on the input of the changes, in training
    vision: Layers = None  # of the image tower
    text: Layers = None  # of the text tower


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Sizes of the learned parts; a part that a method lacks has length 0."""

    classes: int  # C
    text_length: int = 0  # n, the context tokens of a class
    text_depth: int = 1  # J_t, the text layers with context tokens of their own
    class_specific: bool = False  # whether each class has a context of its own
    conditioned: bool = False  # whether the context depends on the image
    visual_length: int = 0  # n_v, the visual tokens of a layer
    # J_v, the image layers with visual tokens of their own; those of layer J_v stay in later
    # layers. 0: all layers before CAVPT, and none stay.
    visual_depth: int = 0
    ln_pre: bool = False  # whether the first layer's tokens pass the norm before the first block
    coupled: bool = False  # whether the visual tokens are computed from the context tokens
    top_k: int = 0  # K, the classes that class-aware prompts are computed for
    first_layer: int = 0  # F, the first CAVPT layer, counted from 1
    consistency: Consistency = dataclasses.field(default=Consistency())
    weights: Weights = dataclasses.field(default=Weights())
    classifier: str = ""  # name of the classifier on the features, "" for cosines with the texts
    method: str = ""  # its name, "" if it has none

    @property
    def has_consistency(self) -> bool:
        """Whether a loss compares prompted with frozen outputs."""
        return bool(self.consistency.text or self.consistency.image or self.consistency.logits)

    @property
    def learns_texts(self) -> bool:
        """Whether the text tower has prompts or learned weights."""
        return bool(self.text_length or self.weights.text)

    @property
    def learns_images(self) -> bool:
        """Whether the image tower has prompts or learned weights."""
        return bool(self.visual_length or self.top_k or self.weights.vision)

    @property
    def learns(self) -> bool:
        """Whether anything is learned."""
        return self.learns_texts or self.learns_images or bool(self.classifier)


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Return U(±1/√fan_in), the initial weight and bias of PyTorch's linear layer."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def linear(features: int, fan_in: int, name: str, dtype: DTypeLike, bias: bool = False) -> nn.Dense:
    """Return a linear layer that starts as PyTorch's does, as in the published code.

    Its product is computed in `dtype`. A bias is added in float32, so its gradient is summed in
    float32 too, and the result is float32.
    """
    init = torch_uniform(fan_in)

    def promote(*arrays: jax.Array | None, **_: object) -> list[jax.Array | None]:
        x, kernel, bias = arrays
        return [jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), bias]

    return nn.Dense(
        features, use_bias=bias, kernel_init=init, bias_init=init, promote_dtype=promote, name=name
    )
