"""The table of methods: what each learns, and how figures draw it.

A method is a set of learned parts on one frozen CLIP. `config.method` names it, and configs/NAME.py
has its settings.
"""

import dataclasses
from typing import NamedTuple

# The learned parts: a context of the class names; extra tokens of image layers; tokens of image
# layers that are computed from the likeliest classes; changes of CLIP's own weights; a classifier
# on the features, which is trained after the others.
TEXT, VISUAL, CLASS_AWARE = "text prompt", "visual prompt", "class-aware prompt"
WEIGHTS, CLASSIFIER = "weights", "classifier"


@dataclasses.dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
      name: As in `config.method` and configs/NAME.py.
      label: Its name in tables and figures.
      parts: What it learns.
      colour: Of its curves and bars.
      marker: Of its curves, for readers without colours.
      classifiers: What config.classifier.name may be; "" if it has no classifier.
    """

    name: str
    label: str
    parts: tuple[str, ...]
    colour: str
    marker: str
    classifiers: tuple[str, ...] = ("",)

    @property
    def in_towers(self) -> tuple[str, ...]:
        """The parts that change what the towers compute."""
        return tuple(part for part in self.parts if part != CLASSIFIER)

    @property
    def visual(self) -> bool:
        """Whether the image tower has prompts."""
        return VISUAL in self.parts or CLASS_AWARE in self.parts


ZERO_SHOT = "zeroshot"

# In the order of tables and legends. Okabe and Ito's colours, which colour-blind readers can tell
# apart; markers tell the methods apart in print.
DPT = (TEXT, VISUAL, CLASS_AWARE)
SS_TEXT = ("sstext", "sstext_plus", "sstext_confidence")
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(ZERO_SHOT, "zero-shot", (), "#000000", ""),
        Method("coop", "CoOp", (TEXT,), "#E69F00", "o"),
        Method("cocoop", "CoCoOp", (TEXT,), "#44AA99", "*"),
        Method("kgcoop", "KgCoOp", (TEXT,), "#999999", "P"),
        Method("vpt", "VPT", (VISUAL,), "#56B4E9", "s"),
        Method("vlp", "VLP", (TEXT, VISUAL), "#009E73", "^"),
        Method("ivlp", "IVLP", (TEXT, VISUAL), "#0072B2", "v"),
        Method("promptsrc", "PromptSRC", (TEXT, VISUAL), "#8C6D00", "p"),
        Method("maple", "MaPLe", (TEXT, VISUAL), "#CC79A7", "X"),
        Method("dpt", "DPT", (TEXT, VISUAL, CLASS_AWARE), "#D55E00", "D"),
        Method("dptsrc", "DPT + SRC", (TEXT, VISUAL, CLASS_AWARE), "#882255", "d"),
        Method("cliplora", "CLIP-LoRA", (WEIGHTS,), "#6A3D9A", "<"),
        Method("twostage", "2SFS", (WEIGHTS, CLASSIFIER), "#B15928", "_", ("linear",)),
        Method("dpt_lora", "DPT + LoRA", (TEXT, VISUAL, CLASS_AWARE, WEIGHTS), "#B15928", "|"),
        Method("sstext", "SS-Text", (CLASSIFIER,), "#888888", "1", SS_TEXT),
        Method("tip_adapter", "Tip-Adapter", (CLASSIFIER,), "#DDCC77", "2", ("tip_adapter",)),
        Method("tip_adapter_f", "Tip-Adapter-F", (CLASSIFIER,), "#B8A33A", "3", ("tip_adapter_f",)),
        Method("clip_adapter", "CLIP-Adapter", (CLASSIFIER,), "#AA4499", "4", ("clip_adapter",)),
        Method("taskres", "TaskRes", (CLASSIFIER,), "#661100", "+", ("taskres",)),
        Method("lpplus", "LP++", (CLASSIFIER,), "#6699CC", "8", ("lpplus",)),
        Method("zslp", "ZS-LP", (CLASSIFIER,), "#332288", "H", ("zslp",)),
        Method("clap", "CLAP", (CLASSIFIER,), "#5544BB", "h", ("clap",)),
        Method("vpt_zslp", "VPT + ZS-LP", (VISUAL, CLASSIFIER), "#2A7DB5", "$v$", ("zslp",)),
        Method("vlp_zslp", "VLP + ZS-LP", (TEXT, VISUAL, CLASSIFIER), "#00634A", "$l$", ("zslp",)),
        Method("dpt_zslp", "DPT + ZS-LP", (*DPT, CLASSIFIER), "#8C3D00", "$z$", ("zslp",)),
        Method("dpt_clap", "DPT + CLAP", (*DPT, CLASSIFIER), "#D55E00", "x", ("clap",)),
    )
}

TRAINED = tuple(name for name in METHODS if name != ZERO_SHOT)
# The methods that DPT's paper compares.
OF_THE_PAPER = (ZERO_SHOT, "coop", "vpt", "vlp", "dpt")
# What a sweep compares by default: those, and classifiers that prompts have to beat.
COMPARED = (*OF_THE_PAPER, "sstext", "zslp")
# A baseline without prompts: a linear classifier of frozen CLIP's features.
PROBE = Method("probe", "linear probe", (), "#117733", ">")
# Everything that tables and figures have a row or a curve for.
ROWS: dict[str, Method] = {**METHODS, PROBE.name: PROBE}


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
      matrices: Of LORA, some of q, k, v and o.
      dropout: Of LORA, on the input of the changes, in training.
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
    """Sizes of the learned parts; the length of a part that a method does not have is 0.

    Attributes:
      classes: Number of classes C.
      text_length: Context tokens n of a class.
      text_depth: Text layers J_t with context tokens of their own.
      class_specific: Whether each class has a context of its own.
      conditioned: Whether the context depends on the image.
      visual_length: Visual tokens n_v of a layer.
      visual_depth: Image layers J_v with visual tokens of their own; the last ones stay in the
        sequence of the later layers. 0 for all layers before CAVPT, whose tokens then end there.
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
