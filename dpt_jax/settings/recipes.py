"""The published settings of each method, where they are not the schema's defaults (DPT's)."""

from collections.abc import Mapping

from dpt_jax.data.catalogue import EMBEDDED, settings_of
from dpt_jax.errors import UserError
from dpt_jax.methods import METHODS
from dpt_jax.settings.keys import Value

FEW_SHOT, BASE_TO_NEW = "few-shot", "base-to-new"
CROSS_DATASET, DOMAIN_SHIFT = "cross-dataset", "domain-generalization"
PROTOCOLS = (FEW_SHOT, BASE_TO_NEW, CROSS_DATASET, DOMAIN_SHIFT)
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
RECIPES: dict[str, Mapping[str, Value]] = {
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
# What the published scripts of a protocol set otherwise.
BY_PROTOCOL: dict[tuple[str, str], Mapping[str, Value]] = {
    ("maple", CROSS_DATASET): {
        "text_prompt.depth": 3,
        "visual_prompt.depth": 3,
        "train.epochs": 2,
        "train.text_lr": 0.0026,
        "train.visual_lr": 0.0026,
    },
    ("kgcoop", CROSS_DATASET): {"dataset.shots": 4},
}
# And on a dataset.
BY_DATASET: dict[tuple[str, str], Mapping[str, Value]] = {
    ("kgcoop", "dtd"): {"loss.template": "a photo of a {}, a type of texture."},
}
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
    recipe = {
        **RECIPES.get(method, {}),
        **BY_PROTOCOL.get((method, trained_for), {}),
        **BY_DATASET.get((method, dataset), {}),
    }
    if dataset in EMBEDDED:
        for key in QUARTERED:
            if key in recipe:
                recipe[key] = max(1, round(int(recipe[key] or 0) / 4))
    return {**recipe, **settings_of(dataset), **METHODS[method].switched_off}
