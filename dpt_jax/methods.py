"""The table of methods: what each learns, and how figures draw it.

A method is a set of learned parts on one frozen CLIP. `config.method` names it, and configs/NAME.py
has its settings.
"""

import dataclasses

# The learned parts: a context of the class names; extra tokens of image layers; tokens of image
# layers that are computed from the likeliest classes; changes of CLIP's own weights; a classifier
# on the features, which is trained after the others.
TEXT, VISUAL, CLASS_AWARE = "text prompt", "visual prompt", "class-aware prompt"
WEIGHTS, CLASSIFIER = "weights", "classifier"


@dataclasses.dataclass(frozen=True)
class Method:
    """One row."""

    name: str  # as in config.method and configs/NAME.py
    label: str  # in tables and figures
    parts: tuple[str, ...]
    colour: str  # of its curves and bars
    marker: str  # of its curves, for readers without colours
    classifiers: tuple[str, ...] = ("",)  # values of classifier.name; "" for no classifier

    @property
    def in_towers(self) -> tuple[str, ...]:
        """The parts that change what the towers compute."""
        return tuple(part for part in self.parts if part != CLASSIFIER)

    @property
    def visual(self) -> bool:
        """Whether the image tower has prompts."""
        return VISUAL in self.parts or CLASS_AWARE in self.parts


ZERO_SHOT = "zeroshot"

# In the order of tables and legends. Methods of similar colours have different markers.
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

# The methods that DPT's paper compares.
OF_THE_PAPER = (ZERO_SHOT, "coop", "vpt", "vlp", "dpt")
# What a sweep compares by default: those, and classifiers as baselines.
COMPARED = (*OF_THE_PAPER, "sstext", "zslp")
# A baseline without prompts: a linear classifier of frozen CLIP's features.
PROBE = Method("probe", "linear probe", (), "#117733", ">")
# Everything that tables and figures have a row or a curve for.
ROWS: dict[str, Method] = {**METHODS, PROBE.name: PROBE}
