"""The published settings of each method, where they are not the schema's defaults (DPT's)."""

import importlib.resources
from collections.abc import Mapping
from typing import NamedTuple

from dpt_jax.data.catalogue import EMBEDDED, settings_of
from dpt_jax.errors import UserError
from dpt_jax.methods import L1
from dpt_jax.settings.keys import Value

# Where PromptSRC's average of the few-shot protocol lies late.
LATE_AVERAGE = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")
FEW_SHOT, BASE_TO_NEW = "few-shot", "base-to-new"
CROSS_DATASET, DOMAIN_SHIFT = "cross-dataset", "domain-generalization"
PROTOCOLS = (FEW_SHOT, BASE_TO_NEW, CROSS_DATASET, DOMAIN_SHIFT)


class Difference(NamedTuple):
    """Settings of a method in one protocol, or on some datasets; "" and () stand for all."""

    method: str
    settings: Mapping[str, Value]
    protocol: str = ""
    datasets: tuple[str, ...] = ()

    def holds(self, method: str, protocol: str, dataset: str) -> bool:
        """Return whether these settings are those of a run."""
        return (
            method == self.method
            and self.protocol in ("", protocol)
            and (not self.datasets or dataset in self.datasets)
        )


def average(mean: float, deviation: float) -> dict[str, Value]:
    """Return the settings of an average over the epochs."""
    return {"train.average_mean": float(mean), "train.average_deviation": float(deviation)}


def imagenet_templates() -> list[str]:
    """Return the 60 of OpenAI's texts for ImageNet that PromptSRC takes on every dataset."""
    file = importlib.resources.files("dpt_jax") / "assets" / "imagenet_templates.txt"
    return file.read_text(encoding="utf-8").splitlines()


# Of everything that adapts ViT-B/16 with the trainer of CoOp's code: one learning rate for all
# that is learned, an epoch of warm-up, and no loss but that of the logits.
RELATIVE: Mapping[str, Value] = {
    "clip.weights": "openai/clip-vit-base-patch16",
    "text_prompt.init": "a photo of a",
    "loss.guidance_epochs": 0,
    "train.warmup_epochs": 1,
}
# Tokens of their own in the first layers of both towers, as MaPLe's code has them for its methods.
JOINT: Mapping[str, Value] = {
    **RELATIVE,
    "text_prompt.length": 2,
    "text_prompt.fixed_words": True,
    "visual_prompt.length": 2,
    "visual_prompt.ln_pre": True,
    "train.batch_size": 4,
    "train.epochs": 5,
    "train.text_lr": 0.0035,
    "train.visual_lr": 0.0035,
}
# What PromptSRC's losses are.
SELF_REGULATED: Mapping[str, Value] = {
    "loss.text_consistency": 25.0,
    "loss.text_distance": L1,
    "loss.image_consistency": 10.0,
    "loss.logit_consistency": 1.0,
    "loss.template": "|".join(imagenet_templates()),
}
HELD = ("promptsrc", "dptsrc")
RECIPES: dict[str, Mapping[str, Value]] = {
    "dptsrc": SELF_REGULATED,
    "promptsrc": {
        **JOINT,
        **SELF_REGULATED,
        "text_prompt.length": 4,
        "text_prompt.depth": 9,
        "visual_prompt.length": 4,
        "visual_prompt.depth": 9,
        "train.epochs": 20,
        "train.text_lr": 0.0025,
        "train.visual_lr": 0.0025,
    },
    "cocoop": {
        **RELATIVE,
        "text_prompt.length": 4,
        "text_prompt.conditioned": True,
        "train.batch_size": 1,
        "train.epochs": 10,
    },
    "kgcoop": {
        **RELATIVE,
        "text_prompt.length": 4,
        "loss.text_consistency": 8.0,
        "train.batch_size": 128,
        "train.epochs": 100,
    },
    "maple": {
        **JOINT,
        "text_prompt.depth": 9,
        "visual_prompt.depth": 9,
        "visual_prompt.coupled": True,
    },
    "ivlp": {**JOINT, "text_prompt.depth": 12, "visual_prompt.depth": 12},
}
# Where they differ by protocol or dataset; of several that fit, the later ones count.
DIFFERENCES = (
    Difference(
        "maple",
        {
            "text_prompt.depth": 3,
            "visual_prompt.depth": 3,
            "train.epochs": 2,
            "train.text_lr": 0.0026,
            "train.visual_lr": 0.0026,
        },
        CROSS_DATASET,
    ),
    Difference("promptsrc", {"train.epochs": 50, **average(30, 30)}, FEW_SHOT),
    Difference("promptsrc", average(45, 5), FEW_SHOT, LATE_AVERAGE),
    Difference("promptsrc", average(15, 1), BASE_TO_NEW),
    Difference(
        "promptsrc",
        {"text_prompt.depth": 3, "visual_prompt.depth": 3, **average(6, 10)},
        CROSS_DATASET,
    ),
    Difference("kgcoop", {"dataset.shots": 4}, CROSS_DATASET),
    Difference(
        "kgcoop", {"loss.template": "a photo of a {}, a type of texture."}, datasets=("dtd",)
    ),
    # The bundled CLIP has seen drawings alone, and knows few words of the templates.
    *(Difference(name, {"loss.template": ""}, datasets=tuple(EMBEDDED)) for name in HELD),
)
# The bundled CLIP has three and four layers where the published settings are for twelve.
QUARTERED = ("text_prompt.depth", "visual_prompt.depth")


def published(method: str, dataset: str, protocol: str) -> dict[str, Value]:
    """Return the settings by key of a method on a dataset that are not the defaults.

    Raise UserError for a name that no dataset or no protocol has.
    """
    if protocol not in PROTOCOLS:
        raise UserError(
            f"configs: no protocol {protocol!r} behind the dataset {dataset}; choose one of "
            f"{', '.join(PROTOCOLS)}."
        )
    # Prompts for the shifted ImageNets are those that go to other datasets too.
    trained_for = CROSS_DATASET if protocol == DOMAIN_SHIFT else protocol
    recipe = dict(RECIPES.get(method, {}))
    for difference in DIFFERENCES:
        if difference.holds(method, trained_for, dataset):
            recipe |= difference.settings
    if dataset in EMBEDDED:
        for key in QUARTERED:
            if key in recipe:
                recipe[key] = max(1, round(int(recipe[key] or 0) / 4))
    return {**recipe, **settings_of(dataset)}
