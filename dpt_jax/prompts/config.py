"""The sizes of the learned parts, and the weights of their losses."""

import dataclasses
from typing import NamedTuple

COSINE, L1 = "cosine", "l1"


class Consistency(NamedTuple):
    """The weights of the consistency losses against frozen CLIP; 0 leaves a loss out."""

    text: float = 0.0
    text_distance: str = COSINE  # or L1
    image: float = 0.0
    logits: float = 0.0


NO_CONSISTENCY = Consistency()

LORA, NORMS, ALL_NORMS = "lora", "norms", "all_norms"
# The first and the last layer, from 1, with 0 for the tower's last; None for no layer.
Layers = tuple[int, int] | None


class Weights(NamedTuple):
    """The weights of CLIP that are learned.

    Attributes:
      kind: LORA, changes of low rank; NORMS, the layer norms of blocks; ALL_NORMS; or "".
      rank: r of LORA.
      alpha: α of LORA, which scales the changes by α/√r.
      matrices: Matrices of LORA, some of q, k, v and o.
      dropout: Dropout of LORA, on the input of the changes, in training.
      vision: Layers of the image tower.
      text: Layers of the text tower.
    """

    kind: str = ""
    rank: int = 0
    alpha: float = 0.0
    matrices: str = ""
    dropout: float = 0.0
    vision: Layers = None
    text: Layers = None


NO_WEIGHTS = Weights()


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Sizes of the learned parts; a part that a method lacks has length 0.

    Attributes:
      classes: Number of classes C.
      text_length: Context tokens n of a class.
      text_depth: Text layers J_t with context tokens of their own.
      class_specific: Whether each class has a context of its own.
      conditioned: Whether the context depends on the image.
      visual_length: Visual tokens n_v of a layer.
      visual_depth: Image layers J_v with visual tokens of their own; those of layer J_v stay in
        later layers. 0: all layers before CAVPT, and none stay.
      ln_pre: Whether the first layer's visual tokens pass the layer norm before the first block.
      coupled: Whether the visual tokens are computed from the context tokens.
      top_k: Classes K that class-aware prompts are computed for.
      first_layer: F, the first CAVPT layer, counted from 1.
      consistency: Weights of the losses against frozen CLIP.
      weights: The weights of CLIP that are learned.
      classifier: Name of the classifier on the features, "" for cosines with the texts.
      method: Name of the method, "" if it has none.
    """

    classes: int
    text_length: int = 0
    text_depth: int = 1
    class_specific: bool = False
    conditioned: bool = False
    visual_length: int = 0
    visual_depth: int = 0
    ln_pre: bool = False
    coupled: bool = False
    top_k: int = 0
    first_layer: int = 0
    consistency: Consistency = NO_CONSISTENCY
    weights: Weights = NO_WEIGHTS
    classifier: str = ""
    method: str = ""

    @property
    def has_consistency(self) -> bool:
        """Whether a loss compares prompted with frozen outputs."""
        return bool(self.consistency.text or self.consistency.image or self.consistency.logits)

    @property
    def has_prompts(self) -> bool:
        """Whether anything is learned in the towers."""
        return self.learns_texts or self.learns_images

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
        return self.has_prompts or bool(self.classifier)
