"""The one table of methods: what each learns, its losses, and how it is drawn.

A method is a set of parts of one model. Symbols of the losses: see docs/method.md.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from dpt_jax.errors import UserError

# The parts of the model that have a size, and the settings key whose 0 turns each off.
TEXT, VISUAL, CLASS_AWARE = "text prompt", "visual prompt", "class-aware prompt"
SWITCHES = {
    TEXT: "text_prompt.length",
    VISUAL: "visual_prompt.length",
    CLASS_AWARE: "cavpt.top_k",
}
# What a method has besides: visual tokens that enter among the patches, or are made of the text's,
# a context that depends on the image, and losses that hold what is prompted to plain CLIP.
AMONG_PATCHES, COUPLED = "visual tokens among the patches", "coupling"
CONDITIONED, CONSISTENT = "context conditioned on the image", "consistency"


@dataclasses.dataclass(frozen=True)
class Method:
    """One row. label: its name in tables and figures. losses: in words."""

    name: str
    label: str
    parts: tuple[str, ...]
    losses: str
    colour: str
    marker: str

    @property
    def switched_off(self) -> dict[str, int]:
        """Return the settings that turn off the parts that the method does not have."""
        return {key: 0 for part, key in SWITCHES.items() if part not in self.parts}


ZERO_SHOT = "zeroshot"
GUIDED = "CE of the logits, and under guidance CE of each tower against the other's frozen one"

# In the order of tables and legends. Okabe and Ito's colours, which colour-blind readers can tell
# apart; markers tell the methods apart in print.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(ZERO_SHOT, "zero-shot", (), "none", "#000000", ""),
        Method("coop", "CoOp", (TEXT,), "CE of the logits", "#E69F00", "o"),
        Method("cocoop", "CoCoOp", (TEXT, CONDITIONED), "CE of the logits", "#44AA99", "*"),
        Method("kgcoop", "KgCoOp", (TEXT, CONSISTENT),
               "CE of the logits; distance of the texts to plain CLIP's", "#999999", "P"),
        Method("vpt", "VPT", (VISUAL,), "CE of the logits", "#56B4E9", "s"),
        Method("vlp", "VLP", (TEXT, VISUAL), GUIDED, "#009E73", "^"),
        Method("ivlp", "IVLP", (TEXT, VISUAL, AMONG_PATCHES), "CE of the logits", "#0072B2", "v"),
        Method("promptsrc", "PromptSRC", (TEXT, VISUAL, AMONG_PATCHES, CONSISTENT),
               "CE of the logits; distances of texts, images and logits to plain CLIP's",
               "#8C6D00", "p"),
        Method("maple", "MaPLe", (TEXT, VISUAL, COUPLED), "CE of the logits", "#CC79A7", "X"),
        Method("dpt", "DPT", (TEXT, VISUAL, CLASS_AWARE),
               f"{GUIDED}; CE of CAVPT's auxiliary logits", "#D55E00", "D"),
        Method("dptsrc", "DPT + SRC", (TEXT, VISUAL, CLASS_AWARE, CONSISTENT),
               "DPT's and PromptSRC's", "#882255", "d"),
    )
}  # fmt: skip

# All but plain CLIP learn something.
TRAINED = tuple(name for name in METHODS if name != ZERO_SHOT)
# The methods that DPT's paper compares.
OF_THE_PAPER = (ZERO_SHOT, "coop", "vpt", "vlp", "dpt")


# What prompts are compared with: a classifier of plain CLIP's features. It learns no prompt.
PROBE = Method("probe", "linear probe", (), "CE of a linear classifier", "#117733", ">")
# All that tables and figures have a row or a curve for.
ROWS: dict[str, Method] = {**METHODS, PROBE.name: PROBE}


def method_with(parts: Iterable[str]) -> Method:
    """Return the method that has these parts, or the most of them and no other.

    Of two with as many it is the later one of the table; whatever has the class-aware prompt is
    DPT.
    """
    present = set(parts)
    if CLASS_AWARE in present:
        present |= {TEXT, VISUAL}
    fitting = [method for method in METHODS.values() if present.issuperset(method.parts)]
    return max(reversed(fitting), key=lambda method: len(method.parts))


COSINE, L1 = "cosine", "l1"


class Consistency(NamedTuple):
    """The weights of the losses that hold what is prompted to plain CLIP; 0 turns one off."""

    text: float = 0.0
    text_distance: str = COSINE  # or L1
    image: float = 0.0
    logits: float = 0.0


HELD_TO_NOTHING = Consistency()


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Which prompts are learned, how many tokens of each, and what they are held to.

    0 turns a part off. Raise UserError for a combination that means nothing.
    """

    classes: int
    text_length: int = 0
    text_depth: int = 1
    class_specific: bool = False
    conditioned: bool = False  # whether the context depends on the image
    visual_length: int = 0
    # J_v, after which the visual tokens carry on as ordinary ones; 0 for tokens of their own in
    # each layer before CAVPT, which then end.
    visual_depth: int = 0
    ln_pre: bool = False  # whether the first visual tokens pass the layer norm of the patches
    coupled: bool = False  # whether the visual tokens are made of the text's
    top_k: int = 0
    first_layer: int = 0  # F, the first CAVPT layer, 1-based
    consistency: Consistency = HELD_TO_NOTHING

    def __post_init__(self) -> None:
        if self.conditioned and not self.text_length:
            raise UserError(
                "text_prompt.conditioned makes a context depend on the image, but "
                "text_prompt.length is 0: turn one of them on or the other off."
            )
        if self.coupled and not (self.text_length and self.visual_length):
            off = "visual_prompt.length" if self.text_length else "text_prompt.length"
            raise UserError(
                f"visual_prompt.coupled makes the visual tokens of the text prompt's, but {off} is "
                "0: turn that on or the coupling off."
            )
        if self.coupled and self.class_specific:
            raise UserError(
                "visual_prompt.coupled makes the visual tokens of the text prompt's, which "
                "text_prompt.class_specific has for each class: turn one of them off."
            )
        if self.consistency.image and not self.sees_prompts:
            raise UserError(
                "loss.image_consistency holds the prompted image tower to plain CLIP's, but "
                "visual_prompt.length and cavpt.top_k are 0: turn one of them on or that off."
            )
        if self.consistency.logits and not self.learned:
            raise UserError(
                "loss.logit_consistency holds the prompted CLIP to the plain one, but no prompt is "
                "on: turn one on or that off."
            )
        if self.consistency.text and not self.text_length:
            raise UserError(
                "loss.text_consistency holds the texts in the learned context to plain CLIP's, but "
                "text_prompt.length is 0: turn one of them on or the other off."
            )

    @property
    def parts(self) -> set[str]:
        """Return the parts that are on."""
        on = {
            TEXT: self.text_length,
            VISUAL: self.visual_length,
            AMONG_PATCHES: self.visual_length and self.ln_pre,
            COUPLED: self.coupled,
            CLASS_AWARE: self.top_k,
            CONDITIONED: self.conditioned,
            CONSISTENT: self.held,
        }
        return {part for part, size in on.items() if size}

    @property
    def method(self) -> str:
        """Return the name that the papers have for this combination of parts."""
        return method_with(self.parts).name

    @property
    def held(self) -> bool:
        """Return whether a loss holds what is prompted to plain CLIP."""
        return bool(self.consistency.text or self.consistency.image or self.consistency.logits)

    @property
    def learned(self) -> bool:
        """Return whether there is a prompt at all; plain CLIP has none."""
        return bool(self.text_length or self.visual_length or self.top_k)

    @property
    def sees_prompts(self) -> bool:
        """Return whether the image tower has prompts."""
        return bool(self.visual_length or self.top_k)
