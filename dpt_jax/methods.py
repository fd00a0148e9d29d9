"""The one table of methods: what each learns, which losses it has, and how it is drawn."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Which prompts are learned, and how many tokens of each; 0 turns a part off."""

    classes: int
    text_length: int = 0
    text_depth: int = 1
    class_specific: bool = False
    visual_length: int = 0
    top_k: int = 0
    first_layer: int = 0  # F, the first CAVPT layer, 1-based

    @property
    def method(self) -> str:
        """The name the paper has for this combination of parts."""
        if self.top_k:
            return "dpt"
        return {(0, 0): "zeroshot", (1, 0): "coop", (0, 1): "vpt", (1, 1): "vlp"}[
            bool(self.text_length), bool(self.visual_length)
        ]
