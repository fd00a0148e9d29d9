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


ZERO_SHOT = "zeroshot"


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method is called and drawn. marker: of its points; "" draws a line without points."""

    label: str
    colour: str
    marker: str


# In the order of tables and legends. Okabe and Ito's colours, which colour-blind readers can tell
# apart; markers tell them apart in print.
METHODS = {
    ZERO_SHOT: Method("zero-shot", "#000000", ""),
    "coop": Method("CoOp", "#E69F00", "o"),
    "vpt": Method("VPT", "#56B4E9", "s"),
    "vlp": Method("VLP", "#009E73", "^"),
    "dpt": Method("DPT", "#D55E00", "D"),
}
